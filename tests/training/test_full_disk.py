"""The disk is full from one of a training's writes on; with room again the same command goes on.

In this process, without Ray: the runs' folder and MLflow's database lie on a small disk.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gliotrail.cluster.train import finish
from gliotrail.errors import GliotrailError
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import all_runs, look_at, runs_dir
from gliotrail.segmentation.loop import World
from gliotrail.tracking.client import client
from gliotrail.tracking.delivery_thread import tracked
from gliotrail.tracking.reaper import reap_all
from gliotrail.tracking.sync import sync_all
from gliotrail.training.driver import run_training
from gliotrail.training.inputs import Training
from tests.support.crops import Crops
from tests.support.environment import in_state
from tests.support.tracked_runs import begun
from tests.tracking.test_chaos import seed

TIMINGS = tuple(
    f"train/{name}" for name in ("voxels_per_s", "data_wait_share", "step_s_median", "step_s_p95")
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND


class Disk:
    """A small disk that is filled at the n-th time that a file on it is made or opened to write."""

    def __init__(self, root: Path) -> None:
        self.root, self._ballast = root, root / "ballast"
        self.writes, self._at, self._filling = 0, 0, False
        sys.addaudithook(self._look)  # for good: there is no way to take one away

    def fill_at(self, n: int) -> None:
        """0: never."""
        self._ballast.unlink(missing_ok=True)
        self.writes, self._at = 0, n

    @property
    def is_full(self) -> bool:
        return self._ballast.exists()

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            counts = isinstance(flags, int) and flags & WRITES
        elif event in {"os.mkdir", "os.rename"}:
            path, counts = args[0], True
        else:
            return
        if self._filling or not counts or not isinstance(path, str | Path):
            return
        if str(path).startswith(f"{self.root}/state/runs"):
            self.writes += 1
            if self.writes == self._at:
                self._fill()

    def _fill(self) -> None:
        self._filling = True
        try:
            with self._ballast.open("wb", buffering=0) as file:
                for size in (2**20, 2**12, 1):
                    while True:
                        try:
                            file.write(b"\0" * size)
                        except OSError:
                            break
        finally:
            self._filling = False


@pytest.fixture
def disk(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def train(training: Training, name: str) -> RunFolder:
    """As `cluster.train`, without Ray."""
    run = RunFolder(runs_dir() / name)
    with tracked(run):
        if not run.is_finished():
            begun(run.root)
            run.reopen()
            run_training(training, run, World())
            finish(training, run)
    return run


def curve(run: RunFolder) -> list[tuple[str, int, float]]:
    return [(p.key, p.step, p.value) for p in run.points() if p.key not in TIMINGS]


def fill_and_go_on(disk: Disk, training: Training, n: int) -> tuple[RunFolder, bool]:
    """A run that finds a full disk at its n-th write, and goes on once there is room."""
    disk.fill_at(n)
    try:
        train(training, f"run{n}")
    except (OSError, GliotrailError):
        assert disk.is_full  # in one line, as `one_line_errors` tells it; anything else is a bug
    was_full = disk.is_full
    for run in all_runs():
        look_at(run)
    disk.fill_at(0)
    reap_all()
    assert sync_all()[1] == {}
    run = train(training, f"run{n}")
    assert sync_all()[1] == {}
    assert run.is_finished()
    known = look_at(run)
    assert (known.is_known, known.problem) == (True, None)
    return run, was_full


def loop(disk: Disk, crops: Crops, patch: pytest.MonkeyPatch, database: Path, most: int) -> None:
    in_state(disk.root / "state", patch)
    (disk.root / "state").mkdir()
    (disk.root / "state/mlflow.db").write_bytes(database.read_bytes())
    training = crops.training(train__epochs=1)
    server = client()
    disk.fill_at(0)
    undisturbed = curve(train(training, "undisturbed"))
    writes, source = disk.writes, random.Random(seed())
    filled = 0
    for n in sorted(source.sample(range(1, writes + 1), min(most, writes))):
        run, was_full = fill_and_go_on(disk, training, n)
        filled += was_full
        assert curve(run) == undisturbed, n
        (known,) = server.search_runs(["1"], f"tags.`gliotrail.id` = '{run.describe()['id']}'")
        assert known.info.status == "FINISHED", n
        history = server.get_metric_history(known.info.run_id, "train/soft_dice_loss")
        assert len(history) == len([p for p in undisturbed if p[0] == "train/soft_dice_loss"]), n
        for done in (run.root, disk.root / "state/artifacts"):  # room for the next
            shutil.rmtree(done)
        if n % 10 == 0:
            print(f"filled at write {n} of {writes}", flush=True)
    print(f"the disk was filled at {filled} of {writes} writes")
    assert filled


@pytest.mark.needs_root
def test_a_disk_that_is_full_from_some_write_on_blocks_nothing_later(
    disk: Disk, crops: Crops, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop(disk, crops, monkeypatch, database, 3)


@pytest.mark.long
@pytest.mark.needs_root
@pytest.mark.timeout(3600)
def test_a_disk_that_is_full_from_any_write_on(
    disk: Disk, crops: Crops, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop(disk, crops, monkeypatch, database, 10**6)
