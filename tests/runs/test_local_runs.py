import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gliotrail.errors import ParamsError
from gliotrail.runs.disk_budget import BUDGET, budget_bytes, bytes_of
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import all_runs, look_at, make_room, runs_dir
from gliotrail.tracking.delivery import deliver
from tests.support.told import told
from tests.support.tracked_runs import begun, finished, go_on, picture


def names(run: RunFolder, pattern: str) -> list[str]:
    return sorted(path.parent.name for path in run.root.glob(f"checkpoints/*/{pattern}"))


def test_what_waits_is_what_the_server_was_not_told(tmp_path: Path, server: MlflowClient) -> None:
    run = begun(runs_dir() / "one")
    go_on(run, [1, 2])
    before = look_at(run)
    segments = sum(path.stat().st_size for path in run.root.glob("checkpoints/*/segment.jsonl"))
    assert before.waiting_bytes == segments + len(picture(1)) + len(picture(2))
    assert (before.status, before.step, before.waiting_checkpoints) == ("RUNNING", 2, 2)
    assert before.size_bytes == bytes_of(run.root) > before.waiting_bytes

    deliver(run, server)
    assert look_at(run).is_known
    go_on(run, [3])
    assert (look_at(run).waiting_checkpoints, look_at(run).is_known) == (1, False)
    deliver(run, server)
    run.end("KILLED", "out of patience")
    after = look_at(run)
    assert (after.status, after.waiting_bytes, after.is_known) == ("KILLED", 0, False)


def test_a_folder_that_is_damaged_is_listed_with_its_problem(server: MlflowClient) -> None:
    run = begun(runs_dir() / "one")
    go_on(run, [1])
    (run.root / "checkpoints/0000000001-0001/manifest.json").write_text("{")
    problem = look_at(run).problem
    assert problem is not None
    assert "manifest.json: damaged manifest" in problem


def test_room_is_made_of_states_then_pictures_of_what_mlflow_has_the_oldest_first(
    server: MlflowClient,
) -> None:
    old, new = (finished(runs_dir() / name) for name in ("old", "new"))
    ended = json.loads((old.root / "ended.json").read_text())
    (old.root / "ended.json").write_text(json.dumps(ended | {"time_ms": 1}))
    unknown, unfinished = finished(runs_dir() / "unknown"), begun(runs_dir() / "unfinished")
    go_on(unfinished, [1, 2])
    for run in (old, new, unfinished):
        deliver(run, server)
    size = bytes_of(runs_dir())

    assert make_room(size) == 0
    assert len(names(old, "*.safetensors")) == 2
    assert make_room(size - 1) == 0
    assert (len(names(old, "*.safetensors")), len(names(new, "*.safetensors"))) == (1, 2)
    over = make_room(1)
    assert over == bytes_of(runs_dir()) - 1
    for run in (old, new):
        assert names(run, "*.safetensors") == names(run, "*.png") == []
        assert len(run.points()) == 6
    for run, count in ((unknown, 3), (unfinished, 2)):
        assert (len(names(run, "*.safetensors")), len(names(run, "*.png"))) == (2, count)


def test_what_made_room_is_still_told_to_a_new_server(server: MlflowClient) -> None:
    run = finished(runs_dir() / "one")
    first = told(server, deliver(run, server))
    make_room(1)
    shutil.rmtree(run.root / "delivered")
    server.delete_run(next(iter(server.search_runs(["1"]))).info.run_id)
    second = told(server, deliver(run, server))
    assert second["points"] == first["points"]
    assert second["status"] == "FINISHED"


def test_over_the_budget_checkpoints_come_without_pictures_and_mlflow_says_so(
    tmp_path: Path, server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(runs_dir() / "one")
    room = bytes_of(runs_dir()) + len(picture(1)) + 1
    monkeypatch.setenv(BUDGET, repr(room / 1e9))
    go_on(run, [1, 2, 3])
    assert [len(checkpoint.pictures()) for checkpoint in run.history()] == [1, 0, 0]
    assert len(run.points()) == 6
    of = told(server, deliver(run, server))
    assert of["tags"]["gliotrail.pictures_left_out"] == "2"
    assert len(of["points"]) == 6


@pytest.mark.parametrize("text", ["0", "-1", "much", "nan", "inf", "1e400"])
def test_a_budget_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUDGET, text)
    with pytest.raises(ParamsError, match=f"{BUDGET}: wanted a number above 0, got '{text}'"):
        budget_bytes()


def test_runs_come_with_sweeps_before_their_trials(server: MlflowClient) -> None:
    sweep = begun(runs_dir() / "z", kind="sweep")
    begun(runs_dir() / "a", parent=sweep.describe()["id"], kind="trial")
    assert [run.root.name for run in all_runs()] == ["z", "a"]
