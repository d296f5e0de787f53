"""A real training by `dvc repro train`, and everything that it leans on, killed by SIGKILL.

After each kill goes on what a user would do: the same command again. Services come back after some
seconds. At the end MLflow is compared with the run's folder, and with a run that nobody disturbed.
"""

import ctypes
import random
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from gliotrail.files import sha256
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.runs.metric_keys import is_of_machines
from gliotrail.tracking.client import client, find_run
from gliotrail.tracking.reaper import reap_all
from tests.support.projects import Project, clone_into, set_params, use_crops
from tests.support.services import MlflowServer, Postgres
from tests.support.told import told

VICTIMS = (
    "training worker", "trainer's controller", "driver", "dvc", "tracking server", "database",
)  # fmt: skip
TITLES = {"training worker": "ray::RayTrainWorker", "trainer's controller": "ray::TrainController"}
FAULTS = ("points lost", "points doubled", "points wrong", "wrong statuses", "other weights")
EPOCHS, STEPS_PER_EPOCH = 8, 4
SMALL = {
    "train.learning_rate": 3e-3,
    "train.patch_size": "16x16x16",
    "train.epochs": EPOCHS,
    "train.epoch_voxels": STEPS_PER_EPOCH * 4 * 16**3,
}
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Kill:
    """Of whom, and when: so long after the run has had so many checkpoints."""

    victim: str
    checkpoints: int
    after_s: float


EACH_ONCE = [Kill(victim, n, 0.2) for n, victim in enumerate(VICTIMS, 1)]


def random_kills(source: random.Random, sequences: int, n: int) -> Iterator[list[Kill]]:
    """Sequences of n, from before the first checkpoint until after the last.

    In any order, but each victim about as often as any other.
    """
    victims = list(islice(cycle(VICTIMS), sequences * n))
    source.shuffle(victims)
    for start in range(0, len(victims), n):
        checkpoints = sorted(source.randint(0, EPOCHS) for _ in range(n))
        yield [
            Kill(victim, c, source.uniform(0, 2 if c else 15))
            for victim, c in zip(victims[start : start + n], checkpoints, strict=True)
        ]


@dataclass(frozen=True)
class Undisturbed:
    """What a training comes to that nobody disturbed."""

    curve: dict[tuple[str, int], float]
    model_sha256: str


def prepare(root: Path) -> Project:
    """A project on the crops with all that `train` needs, in which nothing was trained yet."""
    project = use_crops(clone_into(root))
    set_params(project.root / "params.yaml", SMALL)
    project.run("dvc", "repro", "patch", timeout_s=600)
    best = project.root / "results/sweep/best.json"  # not asked: rate and size are given
    best.parent.mkdir(parents=True)
    best.write_text("{}")
    project.run("dvc", "commit", "--force", "sweep", timeout_s=600)
    return project


class Storm:
    """Kills, and the faults found after them, of one training after another.

    Every process that it kills descends from this one.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        # what outlives its parent stays a descendant of this process
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.folder, self._patch = folder, patch
        self.kills: Counter[str] = Counter()
        self.faults: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.database = Postgres(folder / "postgres.log")
        self.server = MlflowServer(folder / "mlflow.log", self.database.uri, folder / "artifacts")
        self.server.wait()
        self.services = {"tracking server": self.server, "database": self.database}
        self._due_s: dict[str, float] = {}
        self.base = prepare(folder / "base")
        self.undisturbed: Undisturbed | None = None

    def close(self) -> None:
        """End the services."""
        self.server.kill()
        self.database.remove()

    def train(self, name: str, plan: Sequence[Kill], source: random.Random) -> None:
        """One training through `dvc repro train`, as often as it takes, and what came of it."""
        project = Project(self.folder / name)
        shutil.copytree(self.base.root, project.root, symlinks=True)
        self._patch.setenv("GLIOTRAIL_STATE", str(project.root / ".gliotrail"))
        self._patch.setenv("MLFLOW_TRACKING_URI", self.server.uri)
        Training(self, project, list(plan), source).to_its_end()

    def tend(self) -> None:
        """Start services again whose time has come, or that gave up."""
        now_s = time.monotonic()
        for name, service in self.services.items():
            if not service.is_running() and now_s > self._due_s.setdefault(name, now_s + 2):
                service.start()
                self._due_s[name] = now_s + 5  # the server ends where its database is away

    def kill_service(self, name: str, away_s: float) -> None:
        """One that `tend` starts again."""
        self.services[name].kill()
        self._due_s[name] = time.monotonic() + away_s

    def are_well(self) -> bool:
        """Whether all services answer."""
        return all(service.is_ready() for service in self.services.values())

    def table(self) -> str:
        """Who was killed, how often, and what was amiss then or at the end of that training."""
        head = f"{'killed':24}{'times':>6}" + "".join(f"{name:>16}" for name in FAULTS)
        rows = [
            f"{who:24}{self.kills[who]:6}" + "".join(f"{self.faults[who][f]:16}" for f in FAULTS)
            for who in (*VICTIMS, *(self.faults.keys() - {*VICTIMS}))
        ]
        return "\n".join([head, *rows])


class Training:
    """One training of a storm."""

    def __init__(
        self, storm: Storm, project: Project, plan: list[Kill], source: random.Random
    ) -> None:
        self.storm, self.project, self.plan, self.random = storm, project, plan, source
        self.dvc: subprocess.Popen[bytes] | None = None
        self.killed: set[str] = set()
        self.refused = 0
        self._came_s: float | None = None
        self._log = project.root / "repro.txt"

    @property
    def run(self) -> RunFolder | None:
        """Its folder, once it has begun."""
        paths = list((self.project.root / ".gliotrail/runs").glob("*/run.json"))
        return RunFolder(paths[0].parent) if paths else None

    def to_its_end(self) -> None:
        """As a user: `dvc repro train`, again and again until it is done; then compare."""
        started_s = time.monotonic()
        for _ in range(20):
            if self._repro() == 0:
                break
            if any(self._driver()):  # dvc alone was killed
                self._look_at_the_living()
                self._repro()  # is told who holds the run
            self._wait(lambda: not any(self._driver()))
            self._look()
        else:
            raise AssertionError(self._log.read_text()[-4000:])
        self._wait(self.storm.are_well, seconds=300)
        sync = self.project.run("gliotrail", "runs", "sync", timeout_s=300)
        self._compare(sync.stdout)
        left = "".join(f", not reached: {kill}" for kill in self.plan)
        took_s = time.monotonic() - started_s
        said = f"killed {', '.join(sorted(self.killed)) or 'nobody'}; refused {self.refused} times"
        print(f"{self.project.root.name}: {took_s:.0f} s, {said}{left}", flush=True)

    def _repro(self) -> int:
        with self._log.open("ab") as log:
            before = log.tell()
            self.dvc = subprocess.Popen(
                ["dvc", "repro", "train"], cwd=self.project.root, stdin=subprocess.DEVNULL,
                env=self.project.env | {"GLIOTRAIL_WORKERS": "1"}, stdout=log, stderr=log,
            )  # fmt: skip
        dvc = self.dvc
        self._wait(lambda: dvc.poll() is not None)
        self.refused += b"this run is held by process" in self._log.read_bytes()[before:]
        return dvc.returncode

    def _wait(self, what: Callable[[], bool], seconds: float = 900) -> None:
        """Until something is so; meanwhile kill whom the plan names, and tend the services."""
        ends_s = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < ends_s, self._log.read_text()[-4000:]
            self.storm.tend()
            self._kill_who_is_due()
            time.sleep(0.05)

    def _kill_who_is_due(self) -> None:
        if not self.plan:
            return
        due, run = self.plan[0], self.run
        got = len(list(run.root.glob("checkpoints/*/manifest.json"))) if run else 0
        if got < due.checkpoints:
            return
        self._came_s = self._came_s or time.monotonic()
        if time.monotonic() - self._came_s >= due.after_s and self._kill(due.victim):
            self.plan.pop(0)
            self._came_s = None
            self.killed.add(due.victim)
            self.storm.kills[due.victim] += 1

    def _kill(self, who: str) -> bool:
        """Whether it was there to be killed."""
        if who in self.storm.services:
            self.storm.kill_service(who, self.random.uniform(0.5, 15))
            return True
        if who == "dvc":
            if self.dvc is None or self.dvc.poll() is not None:
                return False
            self.dvc.kill()
            return True
        for driver in self._driver():
            if who == "driver":
                driver.kill()
                return True
            for process in driver.children(recursive=True):
                if _command(process)[:1] and _command(process)[0].startswith(TITLES[who]):
                    process.kill()
                    return True
        return False

    def _driver(self) -> Iterator[psutil.Process]:
        """`python -m pipelines.train`, of this training."""
        for process in psutil.Process().children(recursive=True):
            if _command(process)[1:3] == ["-m", "pipelines.train"]:
                yield process

    def _look(self) -> None:
        """No process works on it: it must have ended, KILLED if that was it; nothing doubled.

        FAILED is right only where a busy machine couldn't start Ray in time: no kill leaves that.
        """
        run = self.run
        if run is None or not self.storm.are_well():
            return
        closed = reap_all()
        ended = run.ended() or {}
        self._count(not ended, "wrong statuses")
        if ended.get("status") == "FAILED":
            print(f"FAILED: {ended['reason']}", flush=True)
            self._count(not ended["reason"].startswith("Ray does not start"), "wrong statuses")
        of = self._told(client(), run)
        if of is None:
            return
        self._count(bool(closed) and of["status"] != "KILLED", "wrong statuses")
        self._count_points(of["points"], run)

    def _look_at_the_living(self) -> None:
        """Its process goes on without dvc: nobody may take it for dead."""
        if self.run is not None and self.storm.are_well():
            closed = reap_all()
            self._count(bool(closed) and any(self._driver()), "wrong statuses")

    def _told(
        self, server: MlflowClient, run: RunFolder
    ) -> dict[str, list[tuple[str, int, float, int]]] | None:
        found = find_run(server, "gliotrail", run.describe()["id"])
        return told(server, found.info.run_id) if found else None

    def _count(self, n: int, fault: str) -> None:
        for who in self.killed or {"nobody"}:
            self.storm.faults[who][fault] += int(n)

    def _count_points(self, points: list[tuple[str, int, float, int]], run: RunFolder) -> None:
        times = Counter((key, step) for key, step, *_ in points)
        history = {(p.key, p.step, p.value, p.time_ms) for p in run.points()}
        self._count(sum(n - 1 for n in times.values()), "points doubled")
        self._count(len(set(points) - history), "points wrong")

    def _compare(self, sync: str) -> None:
        run = self.run
        assert run is not None
        of = self._told(client(), run)
        assert of is not None, sync
        points = of["points"]
        self._count_points(points, run)
        history = {(p.key, p.step, p.value, p.time_ms) for p in run.points()}
        got = {(key, step): 0.0 if is_of_machines(key) else value for key, step, value, _ in points}
        model = sha256(self.project.root / "results/train" / MODEL_FILE)
        self.storm.undisturbed = self.storm.undisturbed or Undisturbed(got, model)
        wanted = self.storm.undisturbed.curve
        self._count(len((history - set(points)) | (wanted.keys() - got.keys())), "points lost")
        wrong = [at for at, value in got.items() if wanted.get(at) != value]
        self._count(len(wrong), "points wrong")
        self._count(of["status"] != "FINISHED", "wrong statuses")
        self._count([status for _, status, _ in of["models"]] != ["READY"], "wrong statuses")
        self._count(model != self.storm.undisturbed.model_sha256, "other weights")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []
