"""Processes killed at random moments; then it is counted what of the truth MLflow lacks.

A tracked run (see `tracked_process`) and a `gliotrail runs sync` beside it, each by SIGKILL. After
every kill: what MLflow has is part of the history, nothing twice. At the end, the run having ended:
MLflow has exactly the history.
"""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient

from gliotrail.cli import app
from gliotrail.runs.journal import RunFolder
from gliotrail.tracking.client import client, find_run
from gliotrail.tracking.reaper import reap_all
from tests.support.forked import Forked
from tests.support.told import told
from tests.tracking import tracked_process
from tests.tracking.tracked_process import KEY, value

STEPS_PER_KILL, PAUSE_S = 40, 0.03


def sync() -> None:
    """`gliotrail runs sync`."""
    sys.argv[1:] = ["runs", "sync"]
    app.main()


def moment_of(run: RunFolder) -> str:
    """What a run is at."""
    if not run.has_begun():
        return "before it began"
    if run.ended() is not None:
        return "at its end"
    made = len(list(run.root.glob("checkpoints/*/manifest.json")))
    return "between checkpoints" if made else "before a checkpoint"


class Storm:
    """Kills, and the faults found after them."""

    def __init__(self, root: Path, seed: int, kills: int) -> None:
        self.root, self.run = root, RunFolder(root / "runs/one")
        self.random = random.Random(seed)
        self.max_kills, self.steps = kills, STEPS_PER_KILL * (kills + 1)
        self.kills: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self.seen: list[str] = []

    def start(self, work: Callable[..., None], *args: object) -> Forked:
        return Forked(self.root / "printed.txt", work, *args)

    def tracked(self) -> Forked:
        return self.start(tracked_process.main, self.run.root, PAUSE_S, self.steps)

    def kill(self, what: str, process: Forked, after_s: float) -> None:
        """Unless it has ended before."""
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            moment = moment_of(self.run)
            process.kill()
            self.kills[what, moment] += 1

    def count(self, server: MlflowClient, ended: str | None) -> None:
        """Compare MLflow with the history; `ended` is the status it must have, if it must."""
        if not self.run.has_begun():
            return
        found = find_run(server, "tests", self.run.describe()["id"])
        if found is None:
            self.faults["runs lost"] += ended is not None
            return
        of = told(server, found.info.run_id)
        seen = Counter((key, step) for key, step, *_ in of["points"])
        history = sorted((p.key, p.step, p.value, p.time_ms) for p in self.run.points())
        self.faults["points doubled"] += sum(n - 1 for n in seen.values())
        self.faults["points wrong"] += len(set(of["points"]) - set(history))
        self.seen.append(f"{of['status']} {len(of['points'])} of {len(history)}, wanted {ended}")
        if ended:
            self.faults["points lost"] += len(set(history) - set(of["points"]))
            self.faults["wrong statuses"] += of["status"] != ended

    def rage(self) -> None:
        """Kill the tracked run and syncs beside it, at random, then let it end."""
        while self.kills.total() < self.max_kills:
            process = self.tracked()
            if self.random.random() < 0.4:
                time.sleep(self.random.uniform(0, 1))
                self.kill("gliotrail runs sync", self.start(sync), self.random.uniform(0, 2))
            self.kill("tracked process", process, self.random.uniform(0, 3))
            self.count(client(), None)
            if process.poll() == 0:
                break
            if reap_all():
                self.count(client(), "KILLED")
            if self.run.is_finished():  # killed while it told MLflow so
                break
        last = self.tracked()
        assert last.wait(900) == 0
        self.settle()

    def settle(self) -> None:
        """All that is left is delivered; nothing may be amiss then."""
        assert self.start(sync).wait(300) == 0
        self.count(client(), "FINISHED")
        expected = [(KEY, step, value(step)) for step in range(1, self.steps + 1)]
        got = [(p.key, p.step, p.value) for p in self.run.points()]
        self.faults["points wrong"] += got != expected

    def table(self) -> str:
        """Who was killed how often, and what was amiss."""
        rows = [
            f"{what:20} killed {n:3} times {moment}"
            for (what, moment), n in sorted(self.kills.items())
        ]
        names = ("points lost", "points doubled", "points wrong", "runs lost", "wrong statuses")
        return "\n".join(
            [*rows, *(f"{name:24}{self.faults[name]:11}" for name in names), *self.seen]
        )
