"""Trainings and sweeps under a Ray of their own, of which one process after another is killed.

What a user would do goes on after each kill: the same command again, where it has ended. At the end
MLflow's database is compared with the runs' folders by SQL, and a training's weights with those of
one that nobody disturbed.
"""

import ctypes
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from gliotrail.cluster import trials, workers  # noqa: F401 - seconds of imports, before it is forked
from gliotrail.cluster.sweep import sweep
from gliotrail.cluster.train import train
from gliotrail.errors import one_line_errors
from gliotrail.files import sha256
from gliotrail.progress import say
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.runs.local_runs import all_runs
from gliotrail.segmentation.loop import World
from gliotrail.tracking.reaper import reap_all
from gliotrail.tracking.sync import sync_all
from gliotrail.training.driver import result, run_training
from tests.cluster.test_train import by_two_threads
from tests.support.crops import Crops
from tests.tracking.chaos import moment_of
from tests.tracking.killed import Killed, compare, forked
from tests.tracking.killed_deliveries import in_a_process

PER_ROUND = 8
EPOCHS = 8
TITLES = {
    "training worker": "ray::RayTrainWorker", "trainer's controller": "ray::TrainController",
    "trial's worker": "ray::ImplicitFunc", "raylet": "raylet", "GCS": "gcs_server",
}  # fmt: skip
WITHOUT_RAY_S = 60
OURS = ("train: ", "sweep: ", "step ", "Ray: ", "error: ", "not all of it is in MLflow yet")
"""How lines begin that are told after Ray is gone."""
PR_SET_CHILD_SUBREAPER = 36
TRAINING = {
    "train__epochs": EPOCHS, "train__model__base_filters": 1, "train__epoch_voxels": 2 * 4 * 16**3,
}  # fmt: skip
SWEEP = {
    "train__model__base_filters": 1, "sweep__epochs": EPOCHS // 2, "sweep__epoch_voxels": 4 * 16**3,
    "sweep__space": {"learning_rate": {"choice": [1e-3, 3e-3, 1e-2]},
                     "patch_size": {"choice": ["16x16x16"]}},
}  # fmt: skip
ASHA = {"sweep__scheduler": "asha", "sweep__reduction": 2}
PBT = {
    "sweep__algorithm": "pbt", "sweep__trials": 3,
    "sweep__space": {"learning_rate": {"loguniform": [1e-3, 1e-2]},
                     "patch_size": {"choice": ["16x16x16"]}},
}  # fmt: skip


class Round:
    """One command, given again and again until it is done, and who of it was killed.

    Args:
        root: the state's folder.
        work: what the command does.
    """

    def __init__(self, root: Path, source: random.Random, work: Callable[[], object]) -> None:
        # what outlives its parent stays a descendant of this process
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.root, self.random, self._work = root, source, work
        self.kills: list[tuple[str, str]] = []
        self.faults: Counter[str] = Counter()
        self._log = root / "printed.txt"

    def rage(self, plan: list[tuple[int, str]]) -> None:
        """Kill each victim of a plan some moments after there are so many checkpoints."""
        for _ in range(4 * PER_ROUND):
            driver = forked(self._command)
            while not _ended(driver):
                is_due = plan and self._checkpoints() >= plan[0][0]
                killed = plan.pop(0)[1] if is_due and self._kill(plan[0], driver) else ""
                if killed in {"raylet", "GCS"}:
                    self._wait_for_the_end(driver)
                time.sleep(0.02)
            self._end_what_is_left()
            if (self.root / "done").exists():
                return
            self._look({"KILLED", "FAILED", "FINISHED"})
        raise AssertionError(self._log.read_text(errors="replace")[-4000:])

    def _command(self) -> None:
        with self._log.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        with one_line_errors():
            self._work()
        (self.root / "done").touch()

    def _checkpoints(self) -> int:
        return len(list(self.root.glob("runs/*/checkpoints/*/manifest.json")))

    def _kill(self, kill: tuple[int, str], driver: int) -> bool:
        """Whether it was there to be killed."""
        n, who = kill
        if who != "driver" and not _processes(driver, TITLES[who]):
            return False
        time.sleep(self.random.uniform(0, 0.3 if n else 5))
        moments = [moment_of(run) for run in all_runs() if run.ended() is None]
        for victim in [driver] if who == "driver" else _processes(driver, TITLES[who])[:1]:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                if victim == driver and _wait(driver) != -signal.SIGKILL:
                    return False  # it had just ended
                self.kills.append((who, moments[-1] if moments else "before it began"))
                return True
        return False

    def _wait_for_the_end(self, driver: int) -> None:
        """It is told in one line that Ray is gone, within a minute."""
        before, ends_s = self._log.stat().st_size, time.monotonic() + WITHOUT_RAY_S
        while not _ended(driver):
            if time.monotonic() > ends_s:
                self.faults["hung"] += 1
                os.kill(driver, signal.SIGKILL)
                ends_s += WITHOUT_RAY_S
            time.sleep(0.05)
        told = self._log.read_bytes()[before:].decode(errors="replace").splitlines()
        raw = [line for line in told if line and not line.startswith(OURS)]
        is_done = (self.root / "done").exists()  # at that very moment
        if not is_done and (raw or not any("Ray is gone" in line for line in told)):
            self.faults["told"] += 1
            say(f"after {self.kills[-1]}: {told}")

    def _end_what_is_left(self) -> None:
        """Ray's own processes end by themselves, some seconds later."""
        left = psutil.Process().children(recursive=True)
        for process in psutil.wait_procs(left, 20)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, 10)

    def _look(self, statuses: Collection[str]) -> None:
        found = self.root / "faults.json"
        assert in_a_process(lambda: found.write_text(json.dumps(_settle(statuses)))) == 0
        self.faults.update(json.loads(found.read_text()))

    def killed(self) -> Iterator[Killed]:
        """Each, with what was amiss in the whole round."""
        self._look({"FINISHED"})
        found = {name: n for name, n in self.faults.items() if n}
        yield from (Killed(victim, moment, found) for victim, moment in self.kills)


def _wait(pid: int, options: int = 0) -> int | None:
    """How a child ended; None if it goes on."""
    try:
        found, status = os.waitpid(pid, options)
    except ChildProcessError:  # it was waited for before
        return 0
    return os.waitstatus_to_exitcode(status) if found else None


def _ended(pid: int) -> bool:
    return _wait(pid, os.WNOHANG) is not None


def _processes(driver: int, title: str) -> list[int]:
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with suppress(psutil.Error, IndexError):
                if title in {process.name(), process.cmdline()[0].partition(".")[0]}:
                    found.append(process.pid)
    return found


def _settle(statuses: Collection[str]) -> dict[str, int]:
    """All that is left is delivered; nothing may be amiss then.

    Args:
        statuses: what a run may have ended with that is no trial.
    """
    reap_all()
    _, problems = sync_all()
    assert problems == {}, problems
    faults: Counter[str] = Counter()
    for run in all_runs():
        faults.update(compare(run))
        steps = [p.step for p in run.points() if p.key == "train/soft_dice_loss"]
        faults["wrong"] += steps != list(range(1, len(steps) + 1))
        if run.describe()["tags"]["gliotrail.kind"] != "trial":
            faults["status"] += (run.ended() or {}).get("status") not in statuses
    return {name: n for name, n in faults.items() if n}


def _round(
    root: Path, source: random.Random, work: Callable[[], object], victims: Sequence[str], n: int
) -> Round:
    """Its kills, at random until there are n checkpoints."""
    round_ = Round(root, source, work)
    plan = [(source.randint(0, n - 1), source.choice(victims)) for _ in range(PER_ROUND)]
    round_.rage(sorted(plan, key=lambda kill: kill[0]))
    return round_


def a_training(number: int, root: Path, source: random.Random) -> Iterator[Killed]:
    """By so many workers; each process of Ray that it leans on, and its own."""
    crops = Crops(root.parent / "crops")
    params, training = crops.params(**TRAINING), crops.training(**TRAINING)
    os.environ["GLIOTRAIL_WORKERS"] = str(number)
    out = root / "out"
    # a Ray outlives the first two, and its start takes longest
    victims = ["training worker"] * 4 + ["trainer's controller"] * 2 + ["driver", "raylet", "GCS"]
    work = partial(train, params, crops.prepared, crops.patches, root / "sweep", out)
    round_ = _round(root, source, work, victims, EPOCHS)
    whole = root / "undisturbed"

    def undisturbed() -> None:
        run = RunFolder(root / "whole")
        torch.set_num_threads(2 // number)
        if number == 2:
            by_two_threads(training, run)
        else:
            run_training(training, run, World())
        whole.write_bytes(result(training, run)[1])

    assert in_a_process(undisturbed) == 0
    round_.faults["weights"] += sha256(whole) != sha256(out / MODEL_FILE)
    yield from round_.killed()


def a_sweep(changes: Mapping[str, Any], root: Path, source: random.Random) -> Iterator[Killed]:
    """Of three trials, which use one or two workers at a time."""
    crops = Crops(root.parent / "crops")
    victims = ["trial's worker"] * 4 + ["driver", "raylet", "GCS"]
    params = crops.params(**SWEEP | changes)
    work = partial(sweep, params, crops.prepared, crops.patches, root / "out")
    yield from _round(root, source, work, victims, EPOCHS).killed()


KINDS: Mapping[str, Callable[[Path, random.Random], Iterator[Killed]]] = {
    "training by one": partial(a_training, 1), "training by two": partial(a_training, 2),
    "asha": partial(a_sweep, ASHA), "pbt": partial(a_sweep, PBT),
}  # fmt: skip
