"""`gliotrail runs`, on runs made by hand."""

from __future__ import annotations

import json

import pytest

from gliotrail.runs.local_runs import runs_dir
from tests.support.environment import in_state


@pytest.fixture
def runs(tmp_path, database, no_outputs, monkeypatch):
    """Two runs of which MLflow knows nothing yet: one has ended, one has not."""
    import shutil

    from tests.support.tracked_runs import begun, finished, go_on

    in_state(tmp_path, monkeypatch)
    shutil.copy(database, tmp_path)
    done, going = finished(runs_dir() / "done"), begun(runs_dir() / "going")
    go_on(going, [1, 2])
    return done, going


def test_status_lists_what_waits_and_sync_delivers_it(gliotrail, runs, tmp_path):
    first = gliotrail("runs", "status")
    assert first.code == 0
    lines = [line.split() for line in first.out.splitlines()]
    assert ["done", "train", "of", "tests", "FINISHED", "3"] in [line[:6] for line in lines]
    assert ["going", "train", "of", "tests", "RUNNING", "2"] in [line[:6] for line in lines]
    assert "3 checkpoints" in first.out
    assert f"of at most 20000 (GLIOTRAIL_DISK_GB) in {tmp_path}/runs" in first.out
    assert f"not wholly in sqlite:///{tmp_path}/mlflow.db: 2" in first.out

    assert gliotrail("runs", "sync").out == "2 runs are in MLflow\n"
    values = json.loads(gliotrail("runs", "status", "--json").out)
    assert [run["is_known"] for run in values["runs"]] == [True, True]
    assert "checkpoints" not in gliotrail("runs", "status").out


def test_a_status_of_nothing(gliotrail, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path))
    ended = gliotrail("runs", "status")
    assert (ended.code, ended.out.split()[0]) == (0, "0.0")
    monkeypatch.setenv("GLIOTRAIL_DISK_GB", "much")
    ended = gliotrail("runs", "status")
    assert (ended.code, ended.err) == (
        1,
        "error: GLIOTRAIL_DISK_GB: wanted a number above 0, got 'much'\n",
    )


def test_gc_tells_what_would_go_then_removes_it(gliotrail, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gliotrail("runs", "sync")
    done, going = runs
    would = gliotrail("gc", "--dry-run")
    assert (would.code, len(done.states())) == (0, 2)
    rows = [line.split() for line in would.out.splitlines()]
    assert rows[0][:4] == ["what", "MB", "would", "go"]
    assert {"checkpoints", "journals,", "caches", "MLflow"} <= {row[0] for row in rows}
    assert "would go" in would.out.splitlines()[-1]
    went = gliotrail("gc")
    assert (went.code, went.out.split()[-1]) == (0, "went")
    assert (len(done.states()), len(going.states())) == (0, 2)
    assert gliotrail("gc", "--days", "-1").code == 2
