"""`gliotrail trace` and `compare`, on two delivered runs."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support.environment import in_state


@pytest.fixture
def ids(tmp_path, database, monkeypatch):
    """The own ids of two runs that MLflow knows."""
    from gliotrail.runs.local_runs import runs_dir
    from gliotrail.tracking.client import client
    from gliotrail.tracking.delivery import deliver
    from tests.support.tracked_runs import begun, go_on

    in_state(tmp_path, monkeypatch)
    shutil.copy(database, tmp_path)
    found = []
    for steps in ([1], [1, 2]):
        run = begun(runs_dir() / str(len(steps)))
        go_on(run, steps)
        deliver(run, client())
        found.append(run.describe()["id"])
    return found


def test_trace_shows_what_a_run_came_from(gliotrail, ids):
    shown = gliotrail("trace", ids[0])
    assert shown.code == 0
    for part in (ids[0], "model.depth", "data/prepare", "0" * 32 + ".dir", "not rebuildable"):
        assert part in shown.out
    values = json.loads(gliotrail("trace", ids[0], "--json").out)
    assert values["run"]["own_id"] == ids[0]


def test_compare_shows_what_differs(gliotrail, ids):
    shown = gliotrail("compare", *ids)
    assert shown.code == 0
    assert "val/dice_WT" in shown.out
    assert "threshold" not in shown.out
    assert json.loads(gliotrail("compare", *ids, "--json").out)["metrics"]["val/dice_WT"] == [
        0.001,
        0.002,
    ]
    assert gliotrail("compare", ids[0], ids[0]).out == "nothing differs\n"


def test_a_run_that_is_not_there_is_one_line(gliotrail, ids):
    ended = gliotrail("trace", "nothing")
    assert (ended.code, ended.out) == (1, "")
    assert "nothing: no such run; take models:/gliotrail-unet3d@champion" in ended.err
