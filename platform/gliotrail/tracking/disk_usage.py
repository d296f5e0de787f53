"""This machine's disk usage by owner, and how much of it is not needed any more.

Everything is kept that a living process works on, that is not in MLflow yet, that a registered
model came from, or that the outputs of this checkout, a git branch, tag or experiment refer to.
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlparse
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from gliotrail.errors import TrackingError
from gliotrail.paths import git, main_checkout, state_dir
from gliotrail.runs.addresses import database_uri, shown, tracking_uri
from gliotrail.runs.disk_budget import bytes_of
from gliotrail.runs.journal import RUN_FILE, RunFolder
from gliotrail.runs.local_runs import all_runs, look_at, read_notes, runs_dir
from gliotrail.runs.owner import claim, is_alive, owner_of, release
from gliotrail.tracking.client import client, one_line
from gliotrail.tracking.restore import outputs_here

_GC: Final = ("gc", "--workspace", "--all-branches", "--all-tags", "--all-experiments")


@dataclass(frozen=True)
class Part:
    """One owner's files on the disk.

    unneeded_bytes: as many as `remove` would free.
    stays: what stays, and why.
    remove: removes what isn't needed; returns a line to print.
    """

    owner: str
    size_bytes: int
    unneeded_bytes: int
    stays: str
    remove: Callable[[], str] = lambda: ""


def all_versions(server: MlflowClient) -> list[ModelVersion]:
    """The versions of all registered models."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = server.search_model_versions(max_results=1000, page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            return found


def deleted_runs(server: MlflowClient) -> list[Run]:
    """The runs that somebody deleted in MLflow."""
    every = server.search_experiments(view_type=ViewType.ALL, max_results=1000)
    experiments = [experiment.experiment_id for experiment in every]
    found: list[Run] = []
    token = None
    while True:
        page = server.search_runs(experiments, "", ViewType.DELETED_ONLY, 1000, page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            return found


def digests_of(server: MlflowClient, run_id: str) -> set[str]:
    """DVC's digests of the data that a run was made from; none for a run that is gone."""
    try:
        inputs = server.get_run(run_id).inputs
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return set()
    return {each.dataset.digest for each in inputs.dataset_inputs} if inputs else set()


def of_mlflow(
    server: MlflowClient,
    versions: Sequence[ModelVersion],
    deleted: Sequence[Run],
    kept: Collection[str],
) -> Part:
    """MLflow's artifacts and database in the state folder; a server keeps its own.

    Args:
        deleted: the runs that were deleted in MLflow.
        kept: MLflow's ids of runs that stay although they were deleted.
    """
    owner, own = "MLflow", state_dir() / "mlflow.db"
    size = bytes_of(state_dir() / "artifacts") + (own.stat().st_size if own.is_file() else 0)
    uri = tracking_uri()
    if uri != database_uri(state_dir()):
        return Part(owner, size, 0, f"{shown(uri)} keeps its own; see `mlflow gc`")
    hidden = {e.experiment_id for e in server.search_experiments(ViewType.DELETED_ONLY, 1000)}
    if hidden & {run.info.experiment_id for run in deleted if run.info.run_id in kept}:
        return Part(owner, size, 0, "a deleted experiment has runs that stay: restore it first")
    if not all(_has_model(server, version) for version in versions):
        return Part(owner, size, 0, "a registered version's logged model is deleted: restore it")
    going = [run for run in deleted if run.info.run_id not in kept and _is_here(run)]
    models = [
        model
        for run in going
        for model in server.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
        )
    ]
    homes = [run.info.artifact_uri for run in going] + [m.artifact_location for m in models]

    def remove() -> str:
        from mlflow.cli import gc  # seconds of imports

        for model in models:
            server.delete_logged_model(model.model_id)
        ids = ",".join(run.info.run_id for run in going)
        said = io.StringIO()
        with redirect_stdout(said):
            gc.main(
                ["--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", ids],
                standalone_mode=False,
            )
        return said.getvalue().strip()

    stays = f"{len(deleted) - len(going)} deleted runs stay" if len(going) < len(deleted) else ""
    unneeded = sum(bytes_of(_path(home)) for home in homes)
    return Part(owner, size, unneeded, stays or "runs that exist", remove)


def _has_model(server: MlflowClient, version: ModelVersion) -> bool:
    if not version.model_id:
        return True
    try:
        server.get_logged_model(version.model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _path(uri: str) -> Path:
    return Path(url2pathname(urlparse(uri).path))


def _is_here(run: Run) -> bool:
    """Whether a run's artifacts are in this checkout: a copied database has another's."""
    return _path(run.info.artifact_uri).is_relative_to(state_dir() / "artifacts")


def of_dvc(root: Path, digests: Collection[str]) -> Part | None:
    """DVC's cache; None where there is none.

    Args:
        root: the checkout.
        digests: of data that stay, whether a commit has them or not.

    Raises:
        TrackingError: DVC can't tell what is used, for example while a stage holds its lock.
    """
    if not (root / ".dvc").is_dir():
        return None
    cache = Path(_run(root, "dvc", "cache", "dir").strip())
    size = bytes_of(cache)
    if not cache.is_relative_to(root):
        return Part("DVC's cache", size, 0, f"{cache}: others may use it; see `dvc gc`")
    lines = _dvc_gc(root, cache, digests, "--dry").splitlines()
    paths = [Path(line.removeprefix("Removing ")) for line in lines if line[:9] == "Removing "]
    return Part(
        "DVC's cache",
        size,
        sum(path.stat().st_size for path in paths),
        "what the workspace, git's branches and tags, experiments and models refer to",
        lambda: _dvc_gc(root, cache, digests, "--force"),
    )


def _dvc_gc(root: Path, cache: Path, digests: Collection[str], how: str) -> str:
    with _project(cache, digests) as project:
        return _run(root, "dvc", *_GC, how, "--projects", str(project), *_checkouts(root)).strip()


def _checkouts(root: Path) -> list[str]:
    """Git's other worktrees, and the temporary ones of DVC's experiments."""
    lines = git("worktree", "list", "--porcelain", cwd=root).splitlines()
    found = [Path(line.partition(" ")[2]) for line in lines if line.startswith("worktree ")]
    found += [path.parent for path in (root / ".dvc/tmp/exps").glob("*/*/.dvc")]
    return [str(path) for path in found if (path / ".dvc").is_dir() and path != root]


@contextmanager
def _project(cache: Path, digests: Collection[str]) -> Iterator[Path]:
    """A project on the same cache that refers to the data, so that DVC keeps them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        git("init", "--quiet", cwd=root)  # DVC looks for branches and tags in each project
        (root / ".dvc").mkdir()
        (root / ".dvc/config").write_text(f"[cache]\n    dir = {cache}\n")
        for n, digest in enumerate(sorted(digests)):
            text = f"outs:\n- {{md5: {digest}, hash: md5, path: data{n}}}\n"
            (root / f"data{n}.dvc").write_text(text)
        yield root


def _run(cwd: Path, *command: str) -> str:
    """Run a Python tool; its output.

    Raises:
        TrackingError: it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        got = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise TrackingError(" ".join(command[:2]), where=cwd, got=got)
    return done.stdout


_DAY_S: Final = 24 * 3600


def parts(days: float) -> list[Part]:
    """The parts of all owners. Nothing is removed yet.

    Args:
        days: how long the checkpoints of a training that didn't finish stay.

    Raises:
        TrackingError: MLflow can't be reached, or DVC can't tell what is used.
    """
    runs = all_runs()
    with one_line():
        server = client()
        versions, deleted = all_versions(server), deleted_runs(server)
        made = {str(version.run_id) for version in versions}
        kept = made | _ids_that_stay(runs)
        in_mlflow = of_mlflow(server, versions, deleted, kept)
        digests = {digest for run_id in made for digest in digests_of(server, run_id)}
    gone = {run.info.run_id for run in deleted} - kept
    forgotten = [run for run in runs if read_notes(run).get("run_id") in gone]
    for run in runs:
        if run.ended() is None:
            digests |= {data["digest"] for data in run.describe()["datasets"]}
    here = [_checkpoints(runs, forgotten, days), _journals(forgotten), _caches(runs), in_mlflow]
    in_dvc = of_dvc(main_checkout(Path.cwd()), digests)
    return [*here, in_dvc] if in_dvc else here


def _ids_that_stay(runs: Sequence[RunFolder]) -> set[str]:
    """MLflow's ids of runs with more to deliver, or whose outputs are here."""
    outputs = {json.loads((path / RUN_FILE).read_text())["id"] for path in outputs_here()}
    return {
        read_notes(run).get("run_id", "")
        for run in runs
        if _is_live(run) or not look_at(run).is_known or run.describe()["id"] in outputs
    }


def _is_live(run: RunFolder) -> bool:
    owner = owner_of(run)
    return run.ended() is None and owner is not None and is_alive(owner) is not False


def _checkpoints(runs: Sequence[RunFolder], forgotten: Sequence[RunFolder], days: float) -> Part:
    """The states that trainings would resume from."""
    stays = _winners(runs)
    before_ms = 1000 * (time.time() - days * _DAY_S)

    def is_done(run: RunFolder) -> bool:
        ended = run.ended()
        if ended is None or owner_of(run) is not None or not look_at(run).is_known:
            return False
        return run.root not in stays and (run.is_finished() or ended["time_ms"] < before_ms)

    done = [run for run in runs if run in forgotten or is_done(run)]

    def remove() -> str:
        for run in done:
            claim(run)
            try:
                run.drop_states()
            finally:
                release(run)
        return ""

    which = f"of running, undelivered, winning trials; of those ended early within {days:g} days"
    return Part("checkpoints", _states_bytes(runs), _states_bytes(done), which, remove)


def _states_bytes(runs: Sequence[RunFolder]) -> int:
    return sum(path.stat().st_size for run in runs for path in run.states())


def _winners(runs: Sequence[RunFolder]) -> set[Path]:
    """The trials whose checkpoints their sweep keeps."""
    names = {(run.ended() or {}).get("summary", {}).get("trial") for run in runs}
    says = [(run, run.describe()) for run in runs]
    keep_all = {of["id"] for _, of in says if of["params"].get("keep") == "all"}
    return {run.root for run, of in says if run.root.name in names or of.get("parent") in keep_all}


def _journals(forgotten: Sequence[RunFolder]) -> Part:
    """Points, pictures and models. Without them the same training would be run again."""

    def remove() -> str:
        for run in forgotten:
            shutil.rmtree(run.root)
        return ""

    def others(runs: Sequence[RunFolder]) -> int:
        return _states_bytes(runs) + sum(_size(run.root / "ray") for run in runs)

    size = bytes_of(runs_dir()) - others(all_runs())
    going = sum(bytes_of(run.root) for run in forgotten) - others(forgotten)
    return Part("journals, models", size, going, "all but of runs deleted in MLflow", remove)


def _caches(runs: Sequence[RunFolder]) -> Part:
    """Files fetched, converted, packed or kept for runs, and those that a killed Ray leaves."""
    used = {run.describe()["tags"].get("gliotrail.code.files") for run in runs}
    used |= {
        run.describe()["tags"].get("gliotrail.init_sha256") for run in runs if not run.is_finished()
    }
    folders = [state_dir() / name for name in ("code", "init", "kept", "ray")]
    before_s = time.time() - _DAY_S  # a starting run has not recorded yet what it uses
    going = [
        path
        for folder in folders
        for path in folder.glob("*")
        if path.stem not in used and path.stat().st_mtime < before_s
        if folder.name != "ray" or not any(map(_is_live, runs))
    ]
    of_ray = [run.root / "ray" for run in runs]
    going += [path for path in of_ray if path.is_dir() and not _is_live(RunFolder(path.parent))]

    def remove() -> str:
        for path in going:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return ""

    size, unneeded = (sum(map(_size, paths)) for paths in ([*folders, *of_ray], going))
    return Part("caches of this node", size, unneeded, "what runs refer to, and today's", remove)


def _size(path: Path) -> int:
    return bytes_of(path) if path.is_dir() else path.lstat().st_size if path.exists() else 0
