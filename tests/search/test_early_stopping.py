"""Optuna with ASHA, on Ray: what is stopped early, what it leaves, and a sweep that goes on."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gliotrail.cluster.sweep import EXPERIMENT, sweep
from gliotrail.params import Params
from gliotrail.runs.journal import RunFolder
from gliotrail.tracking.client import client, experiment_id
from tests.support.crops import Crops, try_here
from tests.support.environment import in_state

EPOCHS, STEPS_PER_EPOCH = 3, 4
SPACE = {
    "learning_rate": {"loguniform": [1e-4, 3e-2]},
    "patch_size": {"choice": ["16x16x16"]},
    "augment.flip": {"uniform": [0.2, 0.6]},
}


@dataclass(frozen=True)
class Swept:
    """A sweep: where its state was, and its outputs."""

    state: Path
    out: Path
    params: Params

    def rows(self, name: str = "trials") -> list[dict[str, str]]:
        return list(csv.DictReader((self.out / f"{name}.csv").read_text().splitlines()))

    def run(self, row: dict[str, str]) -> RunFolder:
        return RunFolder(self.state / "runs" / row["trial"])


@pytest.fixture(scope="module")
def swept(ray_cluster: None, crops: Crops, new_state: Callable[[], Path]) -> Swept:
    """Five trials of three epochs; at epochs 1 and 2 the worse half is stopped."""
    params = crops.params(
        sweep__space=SPACE, sweep__algorithm="optuna", sweep__trials=5, sweep__scheduler="asha",
        sweep__reduction=2, sweep__epochs=EPOCHS,
    )  # fmt: skip
    state = new_state()
    done = Swept(state, state / "out", params)
    sweep(params, crops.prepared, crops.patches, done.out)
    return done


def test_only_trials_that_saw_the_whole_budget_can_win(swept: Swept) -> None:
    rows = swept.rows()
    assert len(rows) == 5
    assert {row["status"] for row in rows} == {"FINISHED", "STOPPED"}
    finished = [row for row in rows if row["status"] == "FINISHED"]
    assert {int(row["steps"]) for row in finished} == {EPOCHS * STEPS_PER_EPOCH}
    assert {int(row["voxels"]) for row in finished} == {EPOCHS * STEPS_PER_EPOCH * 4 * 16**3}
    best = json.loads((swept.out / "best.json").read_text())
    assert best["score"] == max(float(row["score"]) for row in finished)
    assert best["params"].keys() == SPACE.keys()


def test_a_stopped_trial_ends_at_its_rung_and_says_why(swept: Swept) -> None:
    decisions = swept.rows("decisions")
    assert [int(row["order"]) for row in decisions] == list(range(1, len(decisions) + 1))
    stopped = {row["trial"]: row for row in decisions if row["decision"] == "stopped"}
    rows = {row["trial"]: row for row in swept.rows() if row["status"] == "STOPPED"}
    assert stopped.keys() == rows.keys()
    for name, row in rows.items():
        rung, run = int(stopped[name]["rung"]), swept.run(row)
        assert int(row["steps"]) == rung * STEPS_PER_EPOCH == run.history()[-1].step
        assert float(row["score"]) == float(stopped[name]["value"])
        ended = run.ended()
        assert ended is not None
        assert ended["status"] == "KILLED"
        assert ended["reason"] == row["reason"]
        assert f"stopped early by asha after epoch {rung} of 3" in row["reason"]
        assert not run.is_finished()


def test_mlflow_tells_the_stopped_from_the_finished(
    swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(swept.state, monkeypatch)
    server = client()
    found = server.search_runs([experiment_id(server, EXPERIMENT)])
    (parent,) = [run for run in found if run.data.tags["gliotrail.kind"] == "sweep"]
    assert parent.data.tags["gliotrail.reproducible"] == "false"
    assert "best: learning_rate" in parent.data.tags["gliotrail.ended"]
    children = [run for run in found if run.data.tags["gliotrail.kind"] == "trial"]
    told = [(run.info.status, run.data.tags["gliotrail.ended"]) for run in children]
    status = {"FINISHED": "FINISHED", "STOPPED": "KILLED"}
    wanted = [(status[r["status"]], r["reason"] or "trained to its budget") for r in swept.rows()]
    assert sorted(told) == sorted(wanted)
    assert all("augment.flip=" in str(run.info.run_name) for run in children)


def test_an_interrupted_sweep_asks_nothing_again_and_ends_the_same(
    swept: Swept, crops: Crops, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    shutil.copytree(swept.state, state)
    in_state(state, monkeypatch)
    once = {path.name: path.read_bytes() for path in swept.out.iterdir()}
    finished = next(row for row in swept.rows() if row["status"] == "FINISHED")
    shutil.rmtree(state / "runs" / finished["trial"])
    for path in (state / "runs").glob("sweep-*/ended.json"):
        path.unlink()
    before = attempts(state)
    try_here(monkeypatch)
    sweep(swept.params, crops.prepared, crops.patches, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == once
    assert attempts(state) == before | {finished["trial"]: 1}


def attempts(state: Path) -> dict[str, Any]:
    """How often each trial was begun, by its folder's name."""
    folders = state.glob("runs/*/attempts")
    return {path.parent.name: len(list(path.iterdir())) for path in folders}
