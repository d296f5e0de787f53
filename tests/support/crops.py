"""The crops, prepared and cut into patches of two sizes, and Ray on two CPUs."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from gliotrail import params
from gliotrail.cluster.connection import cluster
from gliotrail.cluster.job_inputs import JobInputs
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared
from gliotrail.params import Params
from gliotrail.paths import JOB
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.store import Store
from gliotrail.search.proposals import Trial
from gliotrail.segmentation.loop import World
from gliotrail.training.driver import result, run_training
from gliotrail.training.inputs import Training
from tests.support.environment import in_state
from tests.support.projects import CROPS_PARAMS, ROOT, set_params
from tests.support.scans import lay_out_crops

SMALL = {
    **CROPS_PARAMS,
    "sweep.space.learning_rate.choice": [1e-3, 1e-2],
    "train.learning_rate": 3e-3,
    "train.patch_size": "16x16x16",
    "sweep.epochs": 2,
    "train.model.base_filters": 2,
}


@dataclass(frozen=True)
class Crops:
    """The folders of the stages before training, and params.yaml for them."""

    root: Path

    @property
    def prepared(self) -> Path:
        return self.root / "prepare"

    @property
    def patches(self) -> Path:
        return self.root / "patch"

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    def params(self, **changes: Any) -> Params:
        """With other values; `__` in a keyword stands for the dot in a key."""
        path = self.root / "params.yaml"
        shutil.copyfile(ROOT / "params.yaml", path)
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        set_params(path, SMALL | dotted)
        return params.load(path)

    def training(self, **changes: Any) -> Training:
        """What `train` does with these params."""
        values = self.params(**changes)
        return Training.of(
            values, values.train, self.prepared, self.patches, ROOT / "data/pretrain"
        )


def make_crops(root: Path) -> Crops:
    """In a folder that is new, or empty."""
    root.mkdir(exist_ok=True)
    made = Crops(root)
    values = made.params()
    prepare(values.prepare, lay_out_crops(made.raw), made.prepared, processes=1)
    for size in values.patch.sizes:
        patch(values.patch, load_prepared(made.prepared), size, made.patches)
    return made


def ray_on_two_cpus() -> Iterator[None]:
    """Ray on two cores of this machine, whatever it has; with a token, whatever the user's want."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "disabled")
        patched.setenv("RAY_AUTH_TOKEN", "")
        patched.setattr("gliotrail.cluster.connection.cpus_here", lambda: 2)
        with cluster() as connected:
            connected()
            yield


def store_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """This process is of a job, whose machines share this store; its data are nowhere."""
    job = JobInputs("job-1", "train", [], {"data": 32 * "0"}, [], {"url": str(tmp_path / "store")},
               {}, {}, None, {})  # fmt: skip
    job.write(tmp_path)
    monkeypatch.setenv(JOB, job.job)
    package = SimpleNamespace(__file__=str(tmp_path / "platform/gliotrail/__init__.py"))
    monkeypatch.setattr("gliotrail.cluster.job_inputs.gliotrail", package)
    return job.common_store


def train_here(patch: pytest.MonkeyPatch, fit: Callable[[Training, RunFolder], object]) -> None:
    """A stage trains here, without Ray; that it does so on Ray's workers too is test_train's."""
    of_train = "gliotrail.cluster.train"
    patch.setattr(f"{of_train}.cluster", lambda: nullcontext(lambda: None))
    patch.setattr("gliotrail.cluster.autoscaling.nodes", list)
    patch.setattr("gliotrail.cluster.gpus.nodes", list)
    patch.setattr(f"{of_train}.share_out", lambda *_: None)
    patch.setattr(
        "gliotrail.cluster.workers.fit_on_workers", lambda training, run, _: fit(training, run)
    )


def train_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker: this process."""
    train_here(
        monkeypatch, lambda training, run: run_training(training, run, World(), judge_start=True)
    )


def try_here(patch: pytest.MonkeyPatch) -> None:
    """A sweep's trials train here to their end, one after another; on Tune: test_sweep's."""

    def run(waiting: Iterator[Trial | None], *_: object) -> None:
        for trial in waiting:
            assert trial is not None
            run_training(trial.training, trial.run, World())
            score = result(trial.training, trial.run)[0].kept_score
            trial.run.end("FINISHED", trial.reason, {"score": score} | trial.seen())

    of_sweep = "gliotrail.cluster.sweep"
    patch.setattr(f"{of_sweep}.cluster", lambda: nullcontext(lambda: None))
    patch.setattr("gliotrail.cluster.autoscaling.nodes", lambda: [{"CPU": 2}])
    patch.setattr("gliotrail.cluster.gpus.nodes", list)
    patch.setattr("gliotrail.cluster.trials.run_trials", run)


def states_of(
    tmp_path_factory: pytest.TempPathFactory, database: Path
) -> Iterator[Callable[[], Path]]:
    """Called, it gives this process another, empty place for runs and MLflow's database."""
    with pytest.MonkeyPatch.context() as patched:

        def move() -> Path:
            state = tmp_path_factory.mktemp("state")
            shutil.copy(database, state)
            in_state(state, patched)
            return state

        yield move


@contextmanager
def a_worker_killed(state: Path, kind: str, before: Collection[Path] = ()) -> Iterator[list[int]]:
    """SIGKILL one of Ray's worker processes as soon as there is a checkpoint.

    Args:
        state: where the runs are.
        kind: what Ray calls such a process.
        before: manifests of checkpoints that were there before.

    Yields:
        the id of the process, once it was killed.
    """
    killed: list[int] = []

    def kill() -> None:
        killed.append(_workers_of_ray(kind)[0])
        os.kill(killed[0], signal.SIGKILL)

    with once(state, "checkpoints/*/manifest.json", kill, before):
        yield killed


@contextmanager
def once(
    state: Path, pattern: str, do: Callable[[], object], before: Collection[Path] = ()
) -> Iterator[None]:
    """Do something as soon as a run's folder has such a file, beside those from before."""

    def wait() -> None:
        while not set(state.glob(f"runs/*/{pattern}")) - set(before):
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join(1)


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def _workers_of_ray(kind: str) -> list[int]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith(f"ray::{kind}"):
                found.append(process.pid)
        except (psutil.Error, IndexError):
            continue  # it has just ended
    return found
