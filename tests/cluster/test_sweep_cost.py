"""That what `make sweep-cost` measures is what trials do, but for the training itself."""

from pathlib import Path

import pytest

from gliotrail.runs.journal import RunFolder
from gliotrail.search.proposals import Proposals
from gliotrail.segmentation.loop import World
from gliotrail.training import driver
from tests.cluster.sweep_cost import SLEEP_S, sleep_instead
from tests.support.crops import Crops
from tests.support.environment import in_state


def test_a_trial_that_sleeps_leaves_what_one_that_trains_does(
    crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(tmp_path, monkeypatch)
    training = Proposals(crops.params(), crops.prepared, crops.patches).trials[0].training
    trained, slept = RunFolder(tmp_path / "trained"), RunFolder(tmp_path / "slept")
    driver.run_training(training, trained, World())
    for name in ("fit", "validate", "draw_validation"):
        monkeypatch.setattr(driver, name, getattr(driver, name))  # as before, at the test's end
    monkeypatch.setenv(SLEEP_S, "0")
    sleep_instead()
    told: list[dict[str, float]] = []
    driver.run_training(training, slept, World(), told.append)
    points = [{(p.key, p.step) for p in run.points()} for run in (trained, slept)]
    assert points[0] == points[1]
    for checkpoints in zip(trained.history(), slept.history(), strict=True):
        assert checkpoints[0].step == checkpoints[1].step
        assert checkpoints[0].sha256.keys() == checkpoints[1].sha256.keys()
    assert [of["epoch"] for of in told] == [1, 2]
    state, _ = driver.result(training, slept)
    assert state.step == slept.history()[-1].step
