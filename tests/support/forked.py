"""Processes that are forked from one which has loaded MLflow already: to load it takes seconds.

The one that they are forked from has no connection open and runs no other thread.
"""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

LOADED = [
    "mlflow.store.tracking.sqlalchemy_store",
    "gliotrail.cli.app",
    "gliotrail.tracking.sync",
    "tests.support.database",
    "tests.tracking.tracked_process",
]


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


class Forked:
    """A process of its own that does some work, in this process's environment as it is now.

    Args:
        work: a module's function.
        output: what it prints goes there, on whichever stream.
    """

    def __init__(self, output: Path, work: Callable[..., object], *args: object) -> None:
        self._output = output
        output.touch()
        begin = (dict(os.environ), output, work, args)
        self._process = _server().Process(target=_begin, args=begin, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def printed(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def poll(self) -> int | None:
        """Its exit code once it has ended, below 0 if by a signal."""
        return self._process.exitcode

    def wait(self, timeout_s: float) -> int:
        """Wait for its exit code."""
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout_s)
        return code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self._process.join()


def _begin(
    environment: dict[str, str], output: Path, work: Callable[..., object], args: tuple[object, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with output.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    work(*args)
