"""What lies on this machine's disk, by owner, and what of it nothing needs any more.

Nothing goes that a living process works on, that MLflow was not told, that a registered model came
from, or that the outputs of this checkout, a git branch, tag or experiment refer to.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gliotrail.places import main_checkout, state_dir
from gliotrail.tracking.budget import bytes_of
from gliotrail.tracking.journal import RUN_FILE, RunFolder
from gliotrail.tracking.owner import claim, is_alive, owner_of, release
from gliotrail.tracking.restore import outputs_here
from gliotrail.tracking.runs import client, one_line
from gliotrail.tracking.spool import all_runs, look_at, read_notes, runs_dir
from gliotrail.tracking.stored import (
    Part,
    all_versions,
    deleted_runs,
    digests_of,
    of_dvc,
    of_mlflow,
)

_DAY_S: Final = 24 * 3600


def parts(days: float) -> list[Part]:
    """All owners; nothing is removed yet.

    Args:
        days: how long the checkpoints of a training that didn't come to its end stay.

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
    """MLflow's ids of runs that it may be told more of, or that the outputs here are of."""
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
    """What trainings would go on from."""
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

    told = f"of what goes on, or ended early within {days:g} days, is a sweep's winner, or untold"
    return Part("checkpoints", _states_bytes(runs), _states_bytes(done), told, remove)


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
    """What is fetched, converted, packed or kept for runs, and what Ray leaves when killed."""
    used = {run.describe()["tags"].get("gliotrail.code.files") for run in runs}
    used |= {
        run.describe()["tags"].get("gliotrail.init_sha256") for run in runs if not run.is_finished()
    }
    folders = [state_dir() / name for name in ("code", "init", "kept", "ray")]
    before_s = time.time() - _DAY_S  # a run that starts has not said yet what it uses
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
