"""A sweep's trials on machines that share a store and nothing else, as far as one machine shows it.

In a cluster: test_two_nodes.
"""

from pathlib import Path

import pytest

from gliotrail.cluster.connection import Resources
from gliotrail.cluster.trials import _trial, run_trials
from gliotrail.cluster.workers import _same_for_all
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.mirror import Mirror
from gliotrail.runs.owner import claim, release
from gliotrail.runs.stop import asked_by, note
from gliotrail.runs.store import Store
from gliotrail.search.halving import Halving
from gliotrail.search.proposals import Trial
from tests.support.crops import Crops


@pytest.fixture
def left(job_store: Store, tmp_path: Path) -> RunFolder:
    """A run that goes on, where an attempt before was told to stop, and failed."""
    driver, here = (RunFolder(tmp_path / machine / "run") for machine in ("driver", "here"))
    note(here, "Ctrl-C, the last time")
    here.end("FAILED", "the last time")
    (here.root / "failed.json").write_text("{}")
    claim(driver)
    Mirror(driver, job_store).begin()
    release(driver)
    return here


def test_a_worker_goes_on_where_an_attempt_before_was_stopped(left: RunFolder) -> None:
    assert _same_for_all(left, 0, 1) is left
    assert asked_by(left) is left.ended() is None
    assert not (left.root / "failed.json").exists()


def test_a_trial_goes_on_where_an_attempt_before_was_stopped(left: RunFolder, crops: Crops) -> None:
    trial = Trial(0, {}, crops.training(), left)
    _trial({"trial": trial, "wanted": Resources(1, 1, 0), "retell": False, "first_weights": None})
    ended = left.ended()  # the data that the job was sent are nowhere
    assert ended is not None
    assert "no data of digest 0" in ended["reason"]


def test_a_trial_elsewhere_is_told_what_asks_it_to_stop(
    ray_cluster: None,
    crops: Crops,
    job_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gliotrail.runs.mirror._EVERY_S", 0.02)
    params, run = crops.params(), RunFolder(tmp_path / "run")
    trial = Trial(0, {}, crops.training(), run)
    note(run, "SIGTERM")
    halving = Halving(params.sweep, tmp_path / "decisions.csv")
    run_trials(iter([trial]), 1, Resources(1, 1, 0), 1, halving)
    assert job_store.read("gliotrail/runs/run/stop") == b"SIGTERM"
    assert (trial.seen()["steps"], run.ended()) == (1, None)
