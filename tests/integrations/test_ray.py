"""Ray Train and Ray Tune on scikit-learn's digits, tracked: whole, and killed."""

import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from ray import cloudpickle

from gliotrail.integrations.ray_train import _catch_up, fit
from gliotrail.runs.journal import RunFolder
from tests.integrations import ray_train_digits, ray_tune_digits
from tests.integrations.ray_train_digits import STEPS, trainer
from tests.integrations.ray_tune_digits import EPOCHS, sweep
from tests.integrations.scripts import (
    checkpoints,
    database,
    points,
    start,
    statuses,
    to_its_end,
)
from tests.support.environment import in_state
from tests.tracking.test_delivery_thread import until


@pytest.fixture(scope="module", autouse=True)
def loops_travel_to_workers() -> None:
    """Ray's workers find no module of tests."""
    for module in (ray_train_digits, ray_tune_digits):
        cloudpickle.register_pickle_by_value(module)


def once(*keys: str, steps: int) -> Counter[tuple[str, int]]:
    return Counter({(key, step): 1 for key in keys for step in range(1, steps + 1)})


@pytest.mark.long
def test_train_tells_each_ranks_numbers_once_though_a_worker_was_killed(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(tmp_path / "state", monkeypatch)
    inputs = {"steps": STEPS}
    made = trainer(str(tmp_path / "ray"), kill_at=7)
    result = fit(made, "digits", inputs=inputs, all_ranks=True)
    assert (result.metrics or {})["step"] == STEPS
    assert (tmp_path / "ray/worker_killed").exists()
    (found,) = points(tmp_path / "state").values()
    assert found == once("train/loss", "rank_1/train/loss", steps=STEPS)
    assert statuses(tmp_path / "state") == ["FINISHED"]

    again = fit(trainer(str(tmp_path / "ray")), "digits", inputs=inputs)  # nothing to do
    assert (again.metrics or {})["step"] == STEPS

    # what was not heard because the controller was killed at that moment is taken from Ray
    unheard = RunFolder(tmp_path / "runs/unheard")
    unheard.begin({"id": "unheard", "name": "unheard"})
    (name,) = [path.name for path in (tmp_path / "ray").iterdir() if path.is_dir()]
    _catch_up(unheard, f"{tmp_path}/ray/{name}", None, "step")
    assert [(point.step, point.key) for point in unheard.points()] == [(STEPS, "train/loss")]


@pytest.mark.long
def test_tune_makes_each_trial_a_run_below_the_sweeps(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(tmp_path / "state", monkeypatch)
    assert sweep(str(tmp_path / "ray")) == 4
    assert statuses(tmp_path / "state") == ["FINISHED"] * 5
    found = points(tmp_path / "state")
    assert list(found.values()) == [once("accuracy", steps=EPOCHS)] * 4
    asked = database(tmp_path / "state").ask(
        "select t.value, p.value from tags t join params p on p.run_uuid = t.run_uuid "
        "where t.key = 'mlflow.parentRunId' and p.key = 'rate'"
    )
    assert len({parent for parent, _ in asked}) == 1
    assert sorted(float(rate) for _, rate in asked) == [0.1, 0.5, 1.0, 2.0]


@pytest.mark.long
@pytest.mark.starts_ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("module", "keys", "runs", "steps"),
    [
        ("ray_train_digits", ("train/loss", "rank_1/train/loss"), 1, STEPS),
        ("ray_tune_digits", ("accuracy",), 4, EPOCHS),
    ],
)
def test_the_driver_is_killed_and_the_same_script_goes_on(
    module: str, keys: tuple[str, ...], runs: int, steps: int, tmp_path: Path
) -> None:
    process = start(module, tmp_path, str(tmp_path / "ray"))
    until(lambda: checkpoints(tmp_path), 240)
    time.sleep(1.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: set(statuses(tmp_path / "state")) <= {"KILLED", "FINISHED"}, 120)

    assert to_its_end(start(module, tmp_path, str(tmp_path / "ray")), tmp_path)
    assert set(statuses(tmp_path / "state")) == {"FINISHED"}
    assert list(points(tmp_path / "state").values()) == [once(*keys, steps=steps)] * runs
