import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gliotrail.errors import TrackingError
from gliotrail.files import sha256, write_durably
from gliotrail.runs.addresses import tracking_uri
from gliotrail.runs.code_snapshot import CHANGES, code_dir
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.runs.lineage import Origin, describe
from gliotrail.runs.local_runs import read_notes, runs_dir
from gliotrail.tracking.client import ID_TAG, experiment_id
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.registry import CHAMPION, MODEL, register
from gliotrail.tracking.trace import compare, trace
from tests.support.tracked_runs import DIGESTS, finished, go_on


@pytest.fixture
def champion(server: MlflowClient) -> RunFolder:
    """A run whose model is the champion."""
    run = finished(runs_dir() / "one")
    run_id = deliver(run, server)
    model_id, weights = read_notes(run)["model"], run.root / MODEL_FILE
    version = register(server, run_id, model_id, weights, {"gliotrail.id": run.describe()["id"]})
    server.set_registered_model_alias(MODEL, CHAMPION, version.version)
    return run


def another(root: Path, init: str) -> RunFolder:
    """A run that started from a model, with other params and data."""
    run = RunFolder(root)
    described = describe(
        Origin({"env.cpu": "2 x abacus"}, DIGESTS | {"data/prepare": "2" * 32 + ".dir"}),
        experiment="tests",
        kind="train",
        name="another",
        params={"threshold": 0.5, "init": "models:/gliotrail-unet3d@champion"},
        inputs={"init": init},
        data=list(DIGESTS),
    )
    run.begin(described)
    go_on(run, [1])
    run.end("FINISHED", "trained to the end")
    return run


def test_a_model_leads_to_its_run_params_and_data(
    champion: RunFolder, server: MlflowClient
) -> None:
    found = trace(f"models:/{MODEL}@{CHAMPION}")
    says = champion.describe()
    assert found["model"] == {
        "name": MODEL, "version": "1", "aliases": [CHAMPION],
        "sha256": sha256(champion.root / MODEL_FILE),
    }  # fmt: skip
    assert (found["run"]["own_id"], found["run"]["status"]) == (says["id"], "FINISHED")
    assert found["params"] == {
        "model.depth": "2", "model.name": "unet3d", "size": "16x16x16", "threshold": "0.4",
    }  # fmt: skip
    assert {data["path"]: data["digest"] for data in found["data"]} == DIGESTS
    assert found["environment"] == {"cpu": "1 x abacus"}
    assert found["measures"]["val/dice_WT"] == 0.003
    assert found["parent"] is None


@pytest.mark.parametrize("letters", [None, 7])
@pytest.mark.parametrize("of", ["mlflow", "own", "inputs"])
def test_a_run_is_found_by_any_of_its_ids_and_by_their_first_letters(
    of: str, letters: int | None, champion: RunFolder, server: MlflowClient
) -> None:
    says, run_id = champion.describe(), read_notes(champion)["run_id"]
    name = {"mlflow": run_id, "own": says["id"], "inputs": says["tags"]["gliotrail.inputs"]}[of]
    found = trace(name[:letters])
    assert found["run"]["id"] == run_id
    assert found["model"] is None


def test_the_model_that_it_started_from_is_its_parent(
    champion: RunFolder, server: MlflowClient
) -> None:
    digest = sha256(champion.root / MODEL_FILE)
    run_id = deliver(another(runs_dir() / "two", digest), server)
    parent = trace(run_id)["parent"]
    assert parent["sha256"] == digest
    assert (parent["model"]["name"], parent["model"]["version"]) == (MODEL, "1")
    strange = deliver(another(runs_dir() / "three", "0" * 64), server)
    assert trace(strange)["parent"]["model"] is None


def test_two_runs_differ_in_what_differs_and_in_nothing_else(
    champion: RunFolder, server: MlflowClient
) -> None:
    one, two = (deliver(run, server) for run in (champion, another(runs_dir() / "two", "0" * 64)))
    found = compare(one, two)
    assert found["params"]["threshold"] == ("0.4", "0.5")
    assert found["params"]["size"] == ("16x16x16", None)
    assert found["data"] == {"data/prepare": ("0" * 32 + ".dir", "2" * 32 + ".dir")}
    assert found["environment"] == {"cpu": ("1 x abacus", "2 x abacus")}
    assert found["metrics"]["val/dice_WT"] == (0.003, 0.001)
    assert not any(compare(one, one).values())


def test_data_are_found_in_the_cache_and_at_remotes_without_their_passwords(
    champion: RunFolder, server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = tmp_path / ".dvc/cache/files/md5/00" / ("0" * 30 + ".dir")
    held.parent.mkdir(parents=True)
    held.touch()
    remote = "['remote \"store\"']\n    url = https://me:secret@data.example.org/100%25\n"
    (tmp_path / ".dvc/config").write_text(f"[core]\n    analytics = false\n{remote}")
    at = {data["path"]: data["at"] for data in trace(champion.describe()["id"])["data"]}
    shown = "https://...@data.example.org/100%25"
    assert at == {"data/prepare": ["cache", shown], "data/patch/16x16x16": [shown]}


def test_the_commands_begin_at_the_commit_that_others_have(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = []
    for name, tags in {
        "clean": {"gliotrail.code.base": "abc"},
        "changed": {"gliotrail.code.base": "abc", "gliotrail.code.files": "def"},
        "large": {"gliotrail.code.base": "abc", "gliotrail.code.problem": "too large"},
    }.items():
        run = RunFolder(runs_dir() / name)
        says = describe(Origin(tags, {}), experiment="tests", kind="train", name=name,
                        params={}, inputs=name, data=[])  # fmt: skip
        run.begin(says)
        runs.append(trace(deliver(run, server))["commands"])
    clean, changed, large = runs
    assert "git checkout abc" in clean
    assert clean[0] == f"export MLFLOW_TRACKING_URI={tracking_uri()}"
    cache = f"dvc cache dir --local {tmp_path}/.dvc/cache"
    assert clean[-3:] == [cache, "dvc checkout --allow-missing", "dvc repro train"]
    assert not any("git apply" in command for command in clean)
    assert any("git apply" in command for command in changed)
    assert large == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("models:/gliotrail-unet3d@nobody", "no such model"),
        ("models:/gliotrail-unet3d", "model URI: wanted"),
        ("0123456789abcdef", "no such run; take models:/"),
        ("it's none", "no such run"),
    ],
)
def test_what_is_not_there_is_one_line(name: str, problem: str, server: MlflowClient) -> None:
    with pytest.raises(TrackingError, match=problem):
        trace(name)


def test_letters_that_begin_two_ids_are_told_with_both(server: MlflowClient) -> None:
    number = experiment_id(server, "tests")
    runs = [server.create_run(number, tags={ID_TAG: f"abc{n}"}).info.run_id for n in range(2)]
    with pytest.raises(TrackingError, match="abc: wanted the beginning of one run's id") as told:
        trace("abc")
    assert all(run_id in str(told.value) for run_id in runs)


def test_a_patch_that_was_recorded_and_does_not_apply_is_told(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    commit = "git init -q . && mkdir a && echo 1 > a/f && git add . && git commit -qm 1"
    subprocess.run(commit, shell=True, check=True)
    Path("a/f").write_text("2\n")
    base = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    for n, (prefix, problem) in enumerate({"--no-prefix": "does not apply", "-p": None}.items()):
        patch = subprocess.run(["git", "diff", prefix], capture_output=True, check=True).stdout
        digest = f"{n}" * 16
        write_durably(code_dir(digest) / CHANGES, patch)
        tags = {"gliotrail.code.base": base.stdout.strip(), "gliotrail.code.files": digest}
        run = RunFolder(runs_dir() / f"{n}")
        run.begin(describe(Origin(tags, {}), experiment="tests", kind="train", name="one",
                           params={}, inputs=n, data=[]))  # fmt: skip
        run_id = deliver(run, server)
        shutil.rmtree(code_dir(digest))  # as on another machine: MLflow has it
        found = trace(run_id)
        if problem is None:
            assert found["code"]["problem"] is None
            assert found["commands"]
        else:
            assert problem in found["code"]["problem"]
            assert found["commands"] == []


def test_nothing_is_changed_by_looking(champion: RunFolder, server: MlflowClient) -> None:
    database = runs_dir().parent / "mlflow.db"
    shutil.copy(database, database.with_name("before"))
    trace(f"models:/{MODEL}@{CHAMPION}")
    compare(f"models:/{MODEL}@{CHAMPION}", champion.describe()["id"])
    assert database.read_bytes() == database.with_name("before").read_bytes()
