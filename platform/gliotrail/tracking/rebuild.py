"""Rebuild the checkout that a run was made in: code, params and data, in a git worktree."""

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML

from gliotrail.errors import TrackingError
from gliotrail.param_types import FROM_SWEEP
from gliotrail.paths import git, main_checkout
from gliotrail.plain_yaml import read_yaml
from gliotrail.runs.code_snapshot import CHANGES, UNTRACKED
from gliotrail.runs.lineage import dvc_digests
from gliotrail.tracking.once import SHA256_TAG
from gliotrail.tracking.registry import download_weights
from gliotrail.tracking.trace import COMMIT_TAG, INIT_TAG, datasets_of, dvc_config, problem_of

PARAMS: Final = "params.yaml"
LOCK: Final = "dvc.lock"
SWEEP: Final = "results/sweep"


def base_of(server: MlflowClient, run: Run) -> str:
    """The commit that a run is rebuilt from, fetched from the remotes if it isn't here.

    Raises:
        TrackingError: the run can't be rebuilt, or the commit is nowhere.
    """
    tags, what = run.data.tags, "not rebuildable"
    base = tags.get("gliotrail.code.base") or tags.get(COMMIT_TAG, "")
    if tags.get("gliotrail.kind") != "train":
        got = f"a run of {tags.get('gliotrail.kind', 'another program')}"
        raise TrackingError(what, where=run.info.run_id, wanted="a run of `train`", got=got)
    problem = problem_of(server, run)
    if problem or not re.fullmatch("[0-9a-f]{40,64}", base):
        why = problem or "no commit is known"
        raise TrackingError(f"{what}: {why}", where=run.info.run_id)
    if not _has_commit(base):
        git("fetch", "--quiet", "--all")
    if not _has_commit(base):
        what = f"{what}: neither this checkout nor its git remotes have commit {base}"
        raise TrackingError(what, where=run.info.run_id)
    return base


def _has_commit(name: str) -> bool:
    return bool(git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"))


@contextmanager
def worktree(base: str, folder: Path) -> Iterator[None]:
    """A worktree at a commit, for the block; a leftover of a killed process is removed first."""
    remove = ("worktree", "remove", "--force", "--force", str(folder))
    git(*remove)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # without hooks: DVC's would check out data
        hooks = ("-c", "core.hooksPath=/dev/null")
        _must(Path.cwd(), "git", *hooks, "worktree", "add", "--detach", str(folder), base)
        yield
    finally:
        git(*remove)


def lay_out(server: MlflowClient, run: Run, tree: Path, downloads: Path) -> None:
    """Turn a worktree at the run's commit into the checkout that the run was started in.

    DVC gets the settings and the cache of this checkout.

    Raises:
        TrackingError: a file that the run should have recorded is not there.
    """
    run_id = run.info.run_id
    recorded = {file.path for file in server.list_artifacts(run_id)}
    for name in (PARAMS, LOCK):
        if name not in recorded:
            raise TrackingError(f"not rebuildable: it has no artifact {name}", where=run_id)
    downloads.mkdir(parents=True, exist_ok=True)
    if "code" in recorded:
        code = Path(server.download_artifacts(run_id, "code", str(downloads)))
        if (code / CHANGES).is_file():
            _must(tree, "git", "apply", "--whitespace=nowarn", str(code / CHANGES))
        if (code / UNTRACKED).is_file():
            with tarfile.open(code / UNTRACKED) as tar:
                tar.extractall(tree, filter="data")
    for name in (PARAMS, LOCK):
        shutil.copyfile(server.download_artifacts(run_id, name, str(downloads)), tree / name)
    if ":/" in run.data.params.get("init", ""):
        _take_first_weights(server, run.data.tags[INIT_TAG], tree, downloads)
    with (tree / ".dvc/config.local").open("w") as file:
        dvc_config(main_checkout(Path.cwd())).write(file)


def _take_first_weights(server: MlflowClient, digest: str, tree: Path, downloads: Path) -> None:
    """Fetch them by their hash: their name may mean another model now."""
    known = server.search_model_versions(f"tags.`{SHA256_TAG}` = '{digest}'")
    if not known:
        raise TrackingError(f"not rebuildable: no model has its first weights, sha256 {digest}")
    first = tree.with_name("first.safetensors")  # the same path each time: it is a param
    shutil.copyfile(download_weights(server, known[0], downloads), first)
    yaml = YAML()
    values = yaml.load(tree / PARAMS)
    values["train"]["init"] = str(first)
    yaml.dump(values, tree / PARAMS)


def bring_data(run: Run, tree: Path, with_sweep: bool) -> None:
    """Bring data by the digests of the run's dvc.lock, from the cache or else from DVC's remotes.

    Args:
        with_sweep: bring a sweep's inputs, not its results.

    Raises:
        TrackingError: neither has the data.
    """
    digests, params, paths = dvc_digests(tree / LOCK), read_yaml(tree / PARAMS), [*datasets_of(run)]
    if with_sweep:  # not all of dvc.lock, which keeps sizes that params.yaml no longer has
        patched = [f"data/patch/{size}" for size in params["patch"]["sizes"]]
        paths = list(dict.fromkeys([*paths, *patched]))
    elif FROM_SWEEP in params["train"].values():
        paths.append(SWEEP)
    if _dvc(tree, "checkout", paths) or _dvc(tree, "pull", paths):
        return
    # DVC may have made a folder and then found no data for it
    there = [p for p in paths if (tree / p).is_file() or any((tree / p).glob("*"))]
    missing = [path for path in paths if path not in there] or paths
    missing_text = ", ".join(f"{path} ({digests.get(path, 'no digest')})" for path in missing)
    what = f"neither the cache nor a remote has all of {missing_text}"
    raise TrackingError(what, where=run.info.run_id, do="`dvc push` it where it was made")


def _dvc(tree: Path, verb: str, paths: Sequence[str]) -> bool:
    words = [sys.executable, "-m", "dvc", verb, "--quiet", *paths]
    return subprocess.run(words, cwd=tree, capture_output=True, check=False).returncode == 0


def _must(folder: Path, *words: str) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = done.stderr.strip().rpartition("\n")[2]
        raise TrackingError(" ".join(words), where=folder, got=last_line)
