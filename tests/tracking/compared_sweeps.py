"""Kills in a sweep of Ray Tune: of a trial's process, of the Tuner's, and of the server."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.support.services import kill_all
from tests.tracking import compared_tune
from tests.tracking.compared_files import Kept, in_mlflow
from tests.tracking.compared_support import (
    AWAY_S,
    EXPERIMENT,
    FORKED,
    LOOKED_AT_S,
    SETTINGS,
    SETTLED_S,
    STEP_S,
    STEPS,
    ForkedServer,
    store,
    until,
)  # fmt: skip


class Sweep:
    """Starts of a sweep in a folder of its own; each trial begins its steps after `go`.

    Args:
        kill_after_s: of each trial, when its own process kills itself.
    """

    def __init__(
        self,
        way: str,
        folder: Path,
        uri: str,
        kill_after_s: list[float | None],
        experiment: str = EXPERIMENT,
        steps: int = STEPS,
        step_s: float = STEP_S / 2,
    ) -> None:
        self.folder = folder
        env = SETTINGS | {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_EXPERIMENT_NAME": experiment,
            "GLIOTRAIL_STATE": str(folder / "state"),
        }
        self._words = (way, folder, env, steps, step_s, kill_after_s, address())
        self.failed, self.process = 0, self._start()

    def _start(self) -> Any:
        process = FORKED.Process(target=compared_tune.main, args=self._words)
        process.start()
        return process

    def go(self, trial: int) -> None:
        """It may begin."""
        (self.folder / f"go-{trial}").touch()

    def until(self, is_so: Callable[[], bool]) -> None:
        """The Tuner's process is started again where it ended before its end."""
        while not is_so():
            if not self.process.is_alive() and not (self.folder / "done").exists():
                self.failed += 1
                assert self.failed < 10, (self.folder / "errors.txt").read_text()[-3000:]
                self.process = self._start()
            time.sleep(0.1)

    def until_began(self, trial: int) -> None:
        """Until it is at its steps, or waits for `go`."""
        self.until((self.folder / f"began-{trial}").exists)

    def kill(self) -> None:
        """The Tuner's process."""
        self.process.kill()
        self.process.join()

    def start_again(self) -> None:
        """After `kill`."""
        self.process = self._start()

    def to_its_end(self) -> None:
        """And what comes after the trials."""
        self.until((self.folder / "done").exists)
        self.process.join(120)

    def close(self) -> None:
        """Whatever is left of it."""
        kill_all(self.process.pid)


@cache
def address() -> str:
    """Of a Ray for all sweeps."""
    import ray

    from gliotrail.cluster import ray_internals

    os.environ |= SETTINGS
    ray_internals.wait_longer_for_a_raylet(300)
    ray_internals.tell_a_raylet_its_agents_ports()
    settings = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=3, **settings)
    return str(ray.get_runtime_context().gcs_address)


def of_sweep(way: str, moments: list[float], of_driver: bool) -> list[dict[str, Any]]:
    """A sweep with one kill in each trial: of the trial's process, or of the Tuner's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ExitStack() as at_end:
        folder = Path(name)
        uri = store(folder)
        after_s = [moment * STEPS * STEP_S / 2 for moment in moments]
        own = [None if of_driver else wait_s for wait_s in after_s]
        sweep = Sweep(way, folder, uri, own)
        at_end.callback(sweep.close)
        running = []
        for trial, wait_s in enumerate(after_s):
            sweep.go(trial)
            if of_driver:
                sweep.until_began(trial)
                time.sleep(wait_s)
                sweep.kill()
                look = partial(in_mlflow, uri, EXPERIMENT, STEPS, trial)
                is_told = lambda look=look: "RUNNING" not in look().statuses  # noqa: E731
                running.append({"running_after": not until(is_told, LOOKED_AT_S)})
                sweep.start_again()
        sweep.to_its_end()
        told = _of_trials(sweep, uri, EXPERIMENT, len(moments))
        return [one | more for one, more in zip(told, running or [{}] * len(told), strict=True)]


def of_tune_server(
    server: ForkedServer, ways: list[str], first: int, moments: list[float]
) -> dict[str, list[dict[str, Any]]]:
    """Kills of a server that all ways' sweeps lean on, one while their trials of a number run.

    Args:
        first: the number of the first kill, for names of its own.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ExitStack() as at_end:
        sweeps = {}
        for at, way in enumerate(ways):
            folder = Path(name) / str(at)
            folder.mkdir()
            nones = [None] * len(moments)
            sweeps[way] = Sweep(way, folder, server.uri, list(nones), f"of-tune-{first}-{at}")
            at_end.callback(sweeps[way].close)
        for trial, moment in enumerate(moments):
            for sweep in sweeps.values():
                sweep.until_began(trial)
            for sweep in sweeps.values():
                sweep.go(trial)
            time.sleep(moment * STEPS * STEP_S / 2)
            server.kill_for(AWAY_S)
        for sweep in sweeps.values():
            sweep.to_its_end()
        return {
            way: _of_trials(sweep, server.database, f"of-tune-{first}-{at}", len(moments))
            for at, (way, sweep) in enumerate(sweeps.items())
        }


def _of_trials(sweep: Sweep, uri: str, experiment: str, number: int) -> list[dict[str, Any]]:
    def of_all() -> list[Kept]:
        return [in_mlflow(uri, experiment, STEPS, trial) for trial in range(number)]

    until(lambda: all(one.statuses == ["FINISHED"] for one in of_all()), SETTLED_S / 4)
    told = [one.told | {"failed_starts": 0} for one in of_all()]
    told[0]["failed_starts"] = sweep.failed
    return told
