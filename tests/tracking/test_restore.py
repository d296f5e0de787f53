"""Runs rebuilt from what DVC brought back: `results/train` without the run's own folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gliotrail.cluster.train import export
from gliotrail.errors import TrackingError
from gliotrail.files import sha256
from gliotrail.runs.journal import JOURNAL_FILE, MODEL_FILE, RUN_FILE, RunFolder
from gliotrail.runs.local_runs import all_runs, runs_dir
from gliotrail.tracking.client import client, existing_run
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.once import SHA256_TAG
from gliotrail.tracking.registry import register
from gliotrail.tracking.restore import RESTORED_TAG, disagreements, restore
from gliotrail.tracking.sync import sync_all
from tests.support.environment import in_state
from tests.support.told import told
from tests.support.tracked_runs import begun, finished, go_on, model_file

Train = Callable[[str], RunFolder]


@pytest.fixture
def train(server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains with params of a name, in a checkout of its own; its outputs go to results/train."""
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")

    def one(name: str) -> RunFolder:
        go_on(begun(runs_dir() / name), [1], {"threads": "1"})
        go_on(run := RunFolder(runs_dir() / name), [2], {"threads": "2"})
        finished(run.root, [3])
        says = run.describe()
        says["tags"]["gliotrail.inputs"] = name
        (run.root / RUN_FILE).write_text(json.dumps(says))
        export(run, Path("results/train"))
        return run

    return one


def known(server: MlflowClient, outputs: Path) -> dict[str, object]:
    """What MLflow knows of the run whose outputs these are."""
    return told(server, existing_run(server, "tests", says(outputs)["id"]).info.run_id)


def says(outputs: Path) -> dict[str, str]:
    return dict(json.loads((outputs / RUN_FILE).read_text()))


def test_an_empty_server_and_machine_are_told_all_that_the_outputs_hold(
    train: Train, server: MlflowClient, database: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    outputs = Path("results/train")
    deliver(train("a"), server)
    once = known(server, outputs)

    (tmp_path / "elsewhere").mkdir()
    shutil.copy(database, tmp_path / "elsewhere")
    in_state(tmp_path / "elsewhere", monkeypatch)
    elsewhere = client()
    own_id = says(outputs)["id"]
    told_before = [(str(outputs), f"MLflow has no run {own_id}: `gliotrail runs sync` rebuilds it")]
    assert list(disagreements()) == told_before
    assert sync_all() == (1, {})
    again = known(elsewhere, outputs)
    for key in ("points", "params", "status", "times"):
        assert again[key] == once[key]
    tags = again["tags"]
    assert isinstance(tags, dict)
    assert isinstance(once["tags"], dict)
    for key in ("resume.exact", "resume.changed"):
        assert tags[key] == once["tags"][key]
    assert (tags[RESTORED_TAG], tags["gliotrail.id"]) == ("true", own_id)
    assert sha256(RunFolder(runs_dir() / "a").root / MODEL_FILE) == sha256(outputs / MODEL_FILE)
    assert list(disagreements()) == []
    assert sync_all() == (1, {})
    assert known(elsewhere, outputs) == again


def test_a_then_b_then_a_again_is_two_runs(
    train: Train, server: MlflowClient, tmp_path: Path
) -> None:
    """The second time A comes from DVC's run cache: nothing runs."""
    outputs = Path("results/train")
    train("a")
    shutil.copytree(outputs, tmp_path / "cache")
    train("b")
    shutil.rmtree(outputs)
    shutil.copytree(tmp_path / "cache", outputs)
    assert sync_all() == (2, {})
    assert RESTORED_TAG not in str(known(server, outputs)["tags"])  # its own folder is still there

    shutil.rmtree(runs_dir() / "a")  # but for its outputs it would be gone
    once = known(server, outputs)["points"]
    assert sync_all() == (2, {})
    assert known(server, outputs)["points"] == once
    assert [run.root.name for run in all_runs()] == ["a", "b"]


def test_a_model_that_is_not_the_registered_one_is_told(train: Train, server: MlflowClient) -> None:
    run = train("a")
    outputs = Path("results/train")
    run_id = deliver(run, server)
    (model,) = server.search_logged_models(
        [server.get_run(run_id).info.experiment_id], f"source_run_id = '{run_id}'"
    )
    register(server, run_id, model.model_id, outputs / MODEL_FILE, {})
    assert list(disagreements()) == []
    registered = sha256(outputs / MODEL_FILE)
    assert model.tags[SHA256_TAG] == registered
    ours = sha256(model_file(outputs / MODEL_FILE, seed=9))
    ((where, what),) = disagreements()
    assert where == str(outputs)
    assert what.startswith(f"model {ours[:12]}, registered {registered[:12]}: `dvc repro evaluate`")


def test_outputs_that_are_damaged_are_told_and_nothing_is_made_of_them(
    train: Train, server: MlflowClient
) -> None:
    outputs = Path("results/train")
    shutil.rmtree(train("a").root)
    lines = (outputs / JOURNAL_FILE).read_bytes()
    (outputs / JOURNAL_FILE).write_bytes(lines.replace(b"[", b"{", 3))
    with pytest.raises(TrackingError, match=r"journal.jsonl: damaged journal: got 0 whole lines"):
        restore(outputs)
    (outputs / RUN_FILE).write_text("{")
    known, problems = sync_all()
    assert known == 0
    assert "no record of a run; bring it back with `dvc checkout`" in problems[str(outputs)]
    assert all_runs() == []
