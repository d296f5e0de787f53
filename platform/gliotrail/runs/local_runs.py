"""The runs on this machine's disk: their sizes, and what the tracking server lacks."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gliotrail.errors import TrackingError
from gliotrail.files import read_json
from gliotrail.paths import state_dir
from gliotrail.runs.addresses import tracking_uri
from gliotrail.runs.disk_budget import bytes_of
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.runs.owner import Owner, is_alive, owner_of


@dataclass(frozen=True)
class Spooled:
    """A run on the disk.

    status: RUNNING until it has ended.
    holder: the process that works on it, or a note that it is gone.
    step: of its last final checkpoint.
    size_bytes: of its folder.
    waiting_checkpoints: final ones that the tracking server doesn't have yet.
    waiting_bytes: of their points and pictures, and of a model that it doesn't have.
    is_known: whether the server has all of it, its end included.
    problem: why the folder can't be read, if so.
    """

    folder: str
    name: str
    started_ms: int
    status: str
    holder: str
    step: int
    size_bytes: int
    waiting_checkpoints: int
    waiting_bytes: int
    is_known: bool
    problem: str | None = None


def runs_dir() -> Path:
    """The folder of all runs' folders."""
    return state_dir() / "runs"


def all_runs() -> list[RunFolder]:
    """Every run that has begun, sweeps before their trials."""
    runs = [RunFolder(path.parent) for path in sorted(runs_dir().glob("*/run.json"))]
    begun = [run for run in runs if run.has_begun()]
    return sorted(begun, key=lambda run: run.describe().get("parent") is not None)


def run_named(name: str) -> RunFolder:
    """The run of this checkout whose folder or own id begins with `name`.

    Raises:
        TrackingError: there is none, or more than one.
    """
    found = runs_named(name)
    if len(found) != 1:
        got = ", ".join(run.root.name for run in found) or "none"
        do = "`gliotrail runs status` lists them"
        raise TrackingError(name or "run", wanted="the beginning of one run's id", got=got, do=do)
    return found[0]


def runs_named(name: str) -> list[RunFolder]:
    """The runs of this checkout whose folder or own id is `name`, or else begins with it."""
    known = [(run, {run.root.name, str(run.describe()["id"])}) for run in all_runs()]
    return [run for run, ids in known if name in ids] or [
        run for run, ids in known if name and any(one.startswith(name) for one in ids)
    ]


def newest_running() -> RunFolder:
    """The running run of this checkout that began last, sweeps before their trials.

    Raises:
        TrackingError: none is running.
    """
    going = [run for run in all_runs() if run.ended() is None and owner_of(run) is not None]
    if not going:
        what = "no run of this checkout goes on"
        raise TrackingError(what, where=runs_dir(), do="start one, such as `dvc repro train`")
    return max(going, key=lambda run: int(run.describe()["started_ms"]))


def notes_path(run: RunFolder) -> Path:
    """The file with notes of what the tracking server has of a run."""
    server = hashlib.sha256(tracking_uri().encode()).hexdigest()[:12]
    return run.root / "delivered" / f"{server}.json"


def read_notes(run: RunFolder) -> dict[str, Any]:
    """The notes of what was delivered; empty before the first delivery."""
    return dict(read_json(notes_path(run)) or {})


def look_at(run: RunFolder) -> Spooled:
    """A run's state, and what waits for delivery. The server is not asked."""
    says, delivered, ended, owner = run.describe(), read_notes(run), run.ended(), owner_of(run)
    problem = None
    try:
        history = run.history()
    except TrackingError as error:
        history, problem = [], str(error)
    names = [checkpoint.folder.name for checkpoint in history]
    waiting = history[names.index(delivered["upto"]) + 1 if delivered.get("upto") in names else 0 :]
    files = [path for c in waiting for path in (c.folder / "segment.jsonl", *c.pictures())]
    model = run.root / MODEL_FILE
    if model.is_file() and "model" not in delivered:
        files.append(model)
    return Spooled(
        folder=run.root.name,
        name=says["name"],
        started_ms=says["started_ms"],
        status=ended["status"] if ended else "RUNNING",
        holder="" if ended or owner is None else _shown(owner),
        step=history[-1].step if history else 0,
        size_bytes=bytes_of(run.root),
        waiting_checkpoints=len(waiting),
        waiting_bytes=sum(path.stat().st_size for path in files if path.is_file()),
        is_known="run_id" in delivered and not files and ended == delivered.get("ended"),
        problem=problem,
    )


def _shown(owner: Owner) -> str:
    return f"{owner} is gone" if is_alive(owner) is False else str(owner)


def _pictures(run: RunFolder) -> list[Path]:
    return list(run.root.glob("checkpoints/*/*.png"))


def make_room(budget_bytes: int) -> int:
    """Remove what is not needed any more, from the oldest runs first, until all fit in a budget.

    From runs that FINISHED and are wholly in MLflow, first the states that training would resume
    from, then the pictures. Points, models and descriptions are never removed.

    Returns:
        how many bytes are still over the budget.
    """
    over = bytes_of(runs_dir()) - budget_bytes
    if over <= 0:
        return 0
    done = [run for run in all_runs() if run.is_finished() and look_at(run).is_known]
    done.sort(key=lambda run: int((run.ended() or {})["time_ms"]))
    for kind in (RunFolder.states, _pictures):
        for run in done:
            for path in kind(run):
                if over <= 0:
                    return 0
                over -= path.stat().st_size
                path.unlink()
    return max(over, 0)
