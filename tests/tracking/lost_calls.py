"""Work with MLflow through a proxy that spoils one call; then what its database holds, by SQL.

In this process and without Ray: runs' folders are made as a training makes them.
"""

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException

from gliotrail.errors import TrackingError
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.owner import Watch, beat, claim, release
from gliotrail.tracking.client import client
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.reaper import reap
from gliotrail.tracking.sync import close_twins
from tests.support.database import READY, Database, Recorded
from tests.support.proxy import FAULTS, Proxy
from tests.support.tracked_runs import begun, finished, go_on
from tests.tracking.test_evaluation_record import MEASURES, record, trained


def training(root: Path) -> list[RunFolder]:
    """A run held by this process, told after each checkpoint; a model, and its end."""
    run = begun(root)
    claim(run)
    beat(run)
    _tell([run])
    go_on(run, [1, 2])
    _tell([run])
    _finish(run)
    _tell([run])
    release(run)
    return [run]


def sweep(root: Path) -> list[RunFolder]:
    """A run with two trials below it, the first of which is told again."""
    parent = begun(root, kind="sweep")
    runs = [parent, *(begun(Path(f"{root}-{n}"), parent.describe()["id"], "trial") for n in (1, 2))]
    for run in runs:
        claim(run)
    _tell(runs)
    go_on(runs[1], [1])
    for run in runs:
        run.end("FINISHED", "a test")
    _tell(runs)
    for run in runs:
        release(run)
    return runs


def evaluation(root: Path) -> list[RunFolder]:
    """A finished run that is evaluated: measures, a version, champion."""
    run, says = trained(int(root.name), score=int(root.name) / 1e6)
    _again(lambda: record(run, says))
    return [run]


WORK: dict[str, Callable[[Path], list[RunFolder]]] = {
    "training": training, "sweep": sweep, "evaluation": evaluation,
}  # fmt: skip


def _finish(run: RunFolder) -> None:
    made = finished(Path(f"{run.root}-made"))
    (made.root / "model.safetensors").rename(run.root / "model.safetensors")
    run.end("FINISHED", "a test", {"score": 0.5, "step": 2})


def _tell(runs: list[RunFolder]) -> None:
    ids: dict[str, str] = {}
    for run in runs:
        ids[run.describe()["id"]] = _again(lambda run=run: deliver(run, client(), above=ids))  # type: ignore[misc]


def _again(work: Callable[[], str]) -> str:
    """As who delivers does: what fails is done again."""
    for _ in range(20):
        try:
            return work()
        except (MlflowException, TrackingError):
            time.sleep(0.1)
    raise AssertionError("it never came to its end")


@dataclass(frozen=True)
class Case:
    """What happens to which calls that a work makes, by their kind and number."""

    work: str
    due: Mapping[tuple[str, int], str]


class Calls:
    """Each kind of call of each work, under each fault."""

    def __init__(self, proxy: Proxy, database: Database, folder: Path) -> None:
        self.proxy, self.database, self.folder = proxy, database, folder
        self._numbers = iter(range(100, 10**6))
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []

    def cases(self, source: random.Random) -> Iterator[Case]:
        """One call of each kind that each work makes, chosen at random, under each fault."""
        for work, calls in self._undisturbed():
            for call, times in sorted(calls.items()):
                for fault in FAULTS:
                    yield Case(work, {(call, source.randint(1, times)): fault})

    def all_at_once(self, source: random.Random) -> Iterator[Case]:
        """As `cases`, but each kind of call of a work suffers one of the faults in the same run."""
        for work, calls in self._undisturbed():
            kinds = sorted(calls.items())
            source.shuffle(kinds)
            for shift in range(len(FAULTS)):
                yield Case(work, {
                    (call, source.randint(1, times)): FAULTS[(n + shift) % len(FAULTS)]
                    for n, (call, times) in enumerate(kinds)
                })  # fmt: skip

    def _undisturbed(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Which calls each work makes, and how often."""
        for work, do in WORK.items():
            self.proxy.arm()
            self._check(work, do(self._root()), "undisturbed")
            yield work, dict(self.proxy.calls)

    def _root(self) -> Path:
        return self.folder / str(next(self._numbers))

    def run(self, case: Case) -> None:
        """The work under the fault, and what it left."""
        self.proxy.arm(case.due)
        runs = WORK[case.work](self._root())
        self.proxy.settle()  # what is late is done by now
        missed, told = dict(self.proxy.due), f"{case}"
        self.proxy.arm()
        reap(Watch())
        close_twins(client())
        self._check(case.work, runs, told)
        for at, fault in case.due.items():
            self.outcomes[case.work, "not reached" if at in missed else fault] += 1

    def _check(self, work: str, runs: list[RunFolder], told: str) -> None:
        for n, run in enumerate(runs):
            found = self.database.runs(run.describe()["id"])
            wrong = [f"{len(found)} runs"] if len(found) != 1 else []
            for recorded in found[:1]:
                wrong += _amiss(work, run, recorded, self.database)
                if n:
                    above = self.database.runs(runs[0].describe()["id"])[0].run_id
                    if recorded.tags.get("mlflow.parentRunId") != above:
                        wrong.append("another parent")
            self.faults += [f"{told}: {what}" for what in wrong]
        if self.database.running():
            self.faults.append(f"{told}: {self.database.running()} runs left RUNNING")


def _amiss(work: str, run: RunFolder, recorded: Recorded, database: Database) -> Iterator[str]:
    """What differs from the run's folder."""
    wanted = [(p.key, p.step, p.value, p.time_ms) for p in run.points()]
    ended = run.ended() or {}
    if work == "evaluation":
        name = f"evaluation of {run.describe()['id']}"
        below = database.runs(uuid.uuid5(uuid.NAMESPACE_OID, name).hex)
        measures = [(key, 2, value, ended["time_ms"]) for key, value in sorted(MEASURES.items())]
        if [(r.status, r.points) for r in below] != [("FINISHED", measures)]:
            yield f"runs of held-out measures: {below}"
    points = [p for p in recorded.points if not p[0].startswith("trial/")]
    if points != sorted(wanted):
        yield f"points {points}, wanted {sorted(wanted)}"
    has_model = work != "sweep"
    for what, got, right in (
        ("status", recorded.status, "FINISHED"),
        ("models", recorded.models, [READY] * has_model),
        ("outputs", recorded.outputs, int(has_model)),
        ("versions", len(recorded.versions), int(work == "evaluation")),
        ("datasets", recorded.datasets, 2),
        ("depth", recorded.params.get("model.depth"), "2"),
        ("description", "gliotrail.note_sha256" in recorded.tags, True),
    ):
        if got != right:
            yield f"{what} {got}, wanted {right}"
    if work == "evaluation" and database.champion() != recorded.run_id:
        yield "another champion"
