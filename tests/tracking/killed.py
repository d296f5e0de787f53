"""Who was killed, and what MLflow's database then lacked or had too much of, read by SQL."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gliotrail.paths import state_dir
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from tests.support.database import READY, Database

FAULTS = ("lost", "doubled", "wrong", "runs", "status", "models", "weights", "hung", "told")
"""`hung`: a minute after Ray was gone; `told`: not in one line of ours that it was."""


@dataclass(frozen=True)
class Killed:
    """Who was killed, when, and what was amiss after it, by its name in FAULTS."""

    victim: str
    moment: str
    faults: Mapping[str, int] = field(default_factory=dict)


def compare(run: RunFolder, more: Mapping[str, Any] | None = None) -> dict[str, int]:
    """What is amiss in the database of a run that has ended and was delivered."""
    database = Database(f"sqlite:///{state_dir()}/mlflow.db")
    found = database.runs(run.describe()["id"])
    if len(found) != 1:
        return {"runs": abs(len(found) - 1)}
    (recorded,) = found
    history = Counter((p.key, p.step, p.value, p.time_ms) for p in run.points())
    of_others = ("test/", "trial/", "sweep/")  # not of the run's own history
    points = Counter(p for p in recorded.points if not p[0].startswith(of_others))
    seen = Counter((key, step) for key, step, *_ in recorded.points)
    wanted = {"models": [READY] * (run.root / MODEL_FILE).exists()} | dict(more or {})
    faults = {
        "lost": (history - points).total(),
        "wrong": (points - history).total(),
        "doubled": sum(n - 1 for n in seen.values()),
        "status": int(recorded.status != (run.ended() or {})["status"]),
        "models": sum(getattr(recorded, name) != value for name, value in wanted.items()),
        "runs": database.running(),
    }
    return {name: n for name, n in faults.items() if n}


def forked(work: Callable[[], object]) -> int:
    """The id of a process that does some work."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    return pid
