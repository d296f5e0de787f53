"""`gliotrail reproduce`, of a small project whose stage `train` takes no Ray and no second.

That the demo's own pipeline comes out bit-identical is in tests/spine/test_reproduce.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import runpy
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.environment import in_state

FILES = {
    ".gitignore": "/data/\n/results/\n/.gliotrail/\n__pycache__/\n",
    ".dvc/config": "[core]\n    analytics = false\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    "params.yaml": "train: {init: scratch, learning_rate: from_sweep, factor: 1}\n",
    "factor.py": "FACTOR = 1\n",
    "dvc.yaml": """
        stages:
          make:
            cmd: mkdir -p data/prepare results/sweep &&
              echo 0.25 > data/prepare/x && echo 3 > results/sweep/best.json
            outs: [data/prepare, results/sweep]
        """,
    "pipelines/__init__.py": "",
    "pipelines/train.py": """
        import json, os, shutil, signal, time
        from pathlib import Path
        import numpy as np
        from safetensors.numpy import save_file
        from gliotrail.plain_yaml import read_yaml
        from gliotrail.paths import state_dir
        from gliotrail.runs.journal import RunFolder
        from gliotrail.runs.writer import Writer
        from gliotrail.runs.lineage import Origin, describe, digest_of
        from factor import FACTOR
        from unknown_to_git import MORE

        params = read_yaml(Path("params.yaml"))
        files = (Path("data/prepare/x"), Path("results/sweep/best.json"))
        loss = FACTOR * MORE * params["train"]["factor"] + sum(float(p.read_text()) for p in files)
        loss += float(os.environ.get("CHANCE", 0))
        run = RunFolder(state_dir() / "runs" / digest_of(params))
        run.begin(
            describe(
                Origin.now(), experiment="gliotrail", kind="train", name="small",
                params={"threshold": 0.5}, inputs=params, data=["data/prepare"],
            ),
            {name: Path(name).read_bytes() for name in ("params.yaml", "dvc.lock")},
        )
        writer = Writer(run)
        for step in range(writer.last_step + 1, 3):
            now = {"train/soft_dice_loss": loss / step, "train/voxels_per_s": time.time()}
            writer.write(step, now)
            writer.checkpoint(step, b"")
            if "STOP" in os.environ:
                os.kill(os.getppid(), signal.SIGTERM)
                time.sleep(60)
        writer.close()
        what = {"model": {"name": "unet3d", "depth": 1, "base_filters": 1}, "standardize": "none"}
        told = {"gliotrail-weights-1": json.dumps(what)}
        save_file({"weights": np.full(3, loss)}, run.root / "model.safetensors", told)
        run.end("FINISHED", "trained to the end", {"score": 1.0, "step": 2})
        out = Path("results/train")
        out.mkdir(parents=True)
        shutil.copy(run.root / "model.safetensors", out)
        (out / "run.json").write_text(json.dumps(run.describe() | {"ended": run.ended()}))
        """,
}
LOSS = 2 * 5 * 7 + 0.25 + 3


@dataclass(frozen=True)
class Original:
    """A run that was made in a checkout with changes, and where its code and data are."""

    run_id: str
    git_remote: Path
    dvc_remote: Path
    tracking_uri: str

    def clone(self, root: Path, patch: pytest.MonkeyPatch, dvc: str) -> Path:
        """A clone that has only the git remote, the tracking server and what DVC is told."""
        git(root.parent, "clone", "--quiet", self.git_remote, root)
        (root / ".dvc/config.local").write_text(textwrap.dedent(dvc))
        patch.chdir(root)
        in_state(root / ".gliotrail", patch)
        patch.setenv("MLFLOW_TRACKING_URI", self.tracking_uri)
        return root


def git(folder: Path, *words: object) -> str:
    done = subprocess.run(
        ["git", *map(str, words)], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def original(tmp_path_factory, database) -> Original:
    from gliotrail.runs.journal import RunFolder
    from gliotrail.tracking.client import client
    from gliotrail.tracking.delivery import deliver

    place = tmp_path_factory.mktemp("original")
    root, remote, state = place / "checkout", place / "remote.git", place / "state"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "Pushed")
    git(root, "clone", "--quiet", "--bare", ".", remote)
    git(root, "remote", "add", "origin", remote)
    git(root, "fetch", "--quiet", "origin")
    (root / "params.yaml").write_text(FILES["params.yaml"].replace("factor: 1", "factor: 2"))
    git(root, "commit", "--quiet", "--all", "--message", "Not pushed")
    (root / "factor.py").write_text("FACTOR = 5\n")
    (root / "unknown_to_git.py").write_text("MORE = 7\n")
    subprocess.run(["dvc", "repro", "--quiet"], cwd=root, check=True)
    shutil.copytree(root / ".dvc/cache", place / "store")
    state.mkdir()
    shutil.copy(database, state)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(root)
        in_state(state, patch)
        runpy.run_path("pipelines/train.py")
        (run,) = (state / "runs").iterdir()
        run_id = deliver(RunFolder(run), client())
    return Original(run_id, remote, place / "store", f"sqlite:///{state / 'mlflow.db'}")


@pytest.fixture
def clone(original, tmp_path, monkeypatch) -> Path:
    """With the data in DVC's cache."""
    dvc = f"[cache]\ndir = {original.dvc_remote}\n"
    return original.clone(tmp_path / "clone", monkeypatch, dvc)


def left(clone: Path) -> list[str]:
    """What reproducing leaves behind beside its run: worktrees, changed files, its own folder."""
    state = clone / ".gliotrail/reproductions"
    worktrees = git(clone, "worktree", "list").splitlines()[1:]
    found = [*worktrees, git(clone, "status", "--short"), *map(str, state.glob("*"))]
    return [line for line in found if line]


def test_a_clone_with_only_the_remotes_makes_the_same_model_again(
    gliotrail, original, tmp_path, monkeypatch
):
    from gliotrail.tracking.client import client
    from gliotrail.tracking.trace import trace

    root = tmp_path / "clone"
    url = os.path.relpath(original.dvc_remote, root / ".dvc")
    dvc = f"[core]\nremote = store\n['remote \"store\"']\nurl = {url}\n"
    original.clone(root, monkeypatch, dvc)
    server = client()
    before = server.get_run(original.run_id).to_dictionary()
    ended = gliotrail("reproduce", original.run_id, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["is_identical"], found["environment"]) == (True, {})
    assert found["parts"] == {
        "weights": {"n": 1, "n_equal": 1, "largest": 0, "where": ""},
        "curves": {"n": 2, "n_equal": 2, "largest": 0, "where": ""},
    }
    assert left(root) == []

    again, code = trace(found["again"]), trace(original.run_id)["code"]
    assert again["run"]["status"] == "FINISHED"
    assert again["measures"]["train/soft_dice_loss"] == LOSS / 2
    assert again["code"] == code | {"commit": code["base"]}
    run = server.get_run(again["run"]["id"])
    assert server.get_experiment(run.info.experiment_id).name == "gliotrail-reproductions"
    assert run.data.tags["reproduces"] == original.run_id
    assert run.data.tags["gliotrail.reproduction"] == "bit-identical"
    assert server.search_registered_models() == []
    assert server.get_run(original.run_id).to_dictionary() == before


def test_stopped_it_leaves_no_worktree_goes_on_and_tells_what_differs(
    gliotrail, original, clone, monkeypatch
):
    from gliotrail.runs.local_runs import all_runs

    monkeypatch.setenv("CHANCE", "0.5")
    monkeypatch.setenv("STOP", "1")
    ended = gliotrail("reproduce", original.run_id)
    assert (ended.code, ended.out) == (143, "")
    assert ended.err.endswith(
        "error: stopped by SIGTERM; what was trained is kept, and the same command goes on\n"
    )
    assert git(clone, "worktree", "list").count("\n") == 0

    monkeypatch.delenv("STOP")
    ended = gliotrail("reproduce", original.run_id)
    assert ended.code == 1
    assert "different: weights by up to 0.5 (weights), curves by up to 0.5" in ended.out
    assert "train/soft_dice_loss at step 1" in ended.out
    (run,) = all_runs()
    assert len(list((run.root / "attempts").iterdir())) == 2
    assert left(clone) == []


def test_data_that_nobody_has_are_named(gliotrail, original, tmp_path, monkeypatch):
    root = original.clone(tmp_path / "clone", monkeypatch, "")
    ended = gliotrail("reproduce", original.run_id)
    assert ended.code == 1
    for path in ("data/prepare", "results/sweep"):
        assert re.search(rf"nor a remote has all of .*{path} \([0-9a-f]{{32}}\.dir\)", ended.err)
    assert left(root) == []


def test_two_at_once_are_refused(gliotrail, original, clone):
    from gliotrail.tracking.trace import trace

    place = clone / ".gliotrail/reproductions" / trace(original.run_id)["run"]["own_id"]
    place.mkdir(parents=True)
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = gliotrail("reproduce", original.run_id)
    assert ended.code == 1
    assert "another `gliotrail reproduce` of the same run goes on" in ended.err


@pytest.mark.parametrize(
    ("kind", "tags", "problem"),
    [
        ("trial", {}, "not rebuildable: wanted a run of `train`, got a run of trial"),
        ("train", {}, "not rebuildable: no commit is known"),
        ("train", {"gliotrail.code.problem": "30 MB"}, "not rebuildable: 30 MB"),
        ("train", {"gliotrail.code.base": "a" * 40}, "nor its git remotes have commit aaaa"),
        ("train", {"gliotrail.code.base": "HEAD"}, "no model: wanted a training's end, got it is"),
    ],
)
def test_a_run_that_can_not_be_rebuilt_says_why(
    kind, tags, problem, gliotrail, clone, database, monkeypatch
):
    from gliotrail.runs.journal import RunFolder
    from gliotrail.runs.lineage import Origin, describe
    from gliotrail.runs.local_runs import runs_dir
    from gliotrail.tracking.client import client
    from gliotrail.tracking.delivery import deliver

    in_state(clone / ".gliotrail", monkeypatch)
    (clone / ".gliotrail").mkdir()
    shutil.copy(database, clone / ".gliotrail")
    tags = {key: git(clone, "rev-parse", v) if v == "HEAD" else v for key, v in tags.items()}
    run = RunFolder(runs_dir() / "one")
    run.begin(
        describe(Origin(tags, {}), experiment="tests", kind=kind, name="one", params={},
                 inputs="one", data=[])
    )  # fmt: skip
    ended = gliotrail("reproduce", deliver(run, client()))
    assert ended.code == 1
    assert problem in ended.err
    assert left(clone) == []
