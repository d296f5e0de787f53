"""Interrupts the block when Ray is gone. Ray itself would wait for minutes, or for ever."""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from subprocess import Popen
from typing import Any, Final

import ray

from gliotrail.cluster.ray_internals import own_processes
from gliotrail.errors import ClusterError
from gliotrail.runs.owner import held

_EVERY_S: Final = 1.0
_SILENCE_S: Final = 30.0
"""A cluster's head may restart within this time."""
_PATIENCE_S: Final = 20.0
"""The time that the process has to end by itself; then it is ended."""
_SIGNAL: Final = signal.SIGUSR2
"""Not SIGUSR1: Ray Tune handles it, and would end the sweep as if it were asked to stop."""


class _RayIsGoneError(BaseException):
    """Raised in the main thread, wherever it is; Ray's own code doesn't catch it."""


@contextmanager
def while_ray_lives(own: bool) -> Iterator[None]:
    """Interrupt the block when Ray is gone; only in the main thread.

    Args:
        own: whether Ray was started by this process.

    Raises:
        ClusterError: Ray is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    done, problem = threading.Event(), list[ClusterError]()

    def handle(*_: Any) -> None:
        if not done.is_set():
            raise _RayIsGoneError

    def watch() -> None:
        with closing(_of_own() if own else _of_another()) as looks:
            for what in looks:
                if done.is_set():
                    return
                if what is not None:
                    problem.append(_gone(what))
                    problem[0].tell()  # at once: Ray's own code may end the process any moment
                    _silence_ray()
                    _break_off(done, problem[0])
                    return

    before = signal.signal(_SIGNAL, handle)
    watcher = threading.Thread(target=watch, name="ray watch", daemon=True)
    watcher.start()
    try:
        yield
    except BaseException:
        if problem:
            raise problem[0] from None
        raise
    finally:
        done.set()
        signal.signal(_SIGNAL, before or signal.SIG_DFL)


@contextmanager
def while_ray_starts() -> Iterator[None]:
    """End the process if Ray's start goes on long after one of Ray's processes has ended.

    `ray.init` itself would wait for more than a minute, and can't be interrupted.
    """
    done = threading.Event()

    def watch() -> None:
        gone_s: float | None = None
        while not done.wait(_EVERY_S):
            what = _ended(own_processes())
            gone_s = None if what is None else gone_s or time.monotonic()
            if what and gone_s and time.monotonic() - gone_s > _PATIENCE_S:
                problem = _gone(what)
                problem.tell()
                end_at_once(problem)

    threading.Thread(target=watch, name="ray start", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _gone(what: str) -> ClusterError:
    return ClusterError("Ray is gone", got=what, do="the same command goes on")


def _ended(processes: Mapping[str, "Popen[bytes]"]) -> str | None:
    codes = {name: process.poll() for name, process in processes.items()}
    return next((f"its {name} ended with {n}" for name, n in codes.items() if n is not None), None)


def _of_own() -> Generator[str | None]:
    """Each second, and at once when one of its processes ends: which one, or None."""
    processes = own_processes()
    with ExitStack() as at_end:
        ends = select.poll()
        for process in processes.values():
            with suppress(ProcessLookupError):
                end = os.pidfd_open(process.pid)
                at_end.callback(os.close, end)
                ends.register(end, select.POLLIN)
        while True:
            ends.poll(1000 * _EVERY_S)
            yield _ended(processes)


def _of_another() -> Generator[str | None]:
    """Each second: None if its head takes connections, else for how long it has not."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    seen_s = time.monotonic()
    while True:
        time.sleep(_EVERY_S)
        silence = None
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            silent_s = time.monotonic() - seen_s
            if silent_s > _SILENCE_S:
                silence = f"its head at {host}:{port} does not answer for {silent_s:.0f} s: {error}"
        else:
            seen_s = time.monotonic()
        yield silence


def _silence_ray() -> None:
    """What Ray's C++ code still writes to the process's standard error goes nowhere."""
    ours = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if sys.stderr is sys.__stderr__:
        sys.stderr = ours


def _break_off(done: threading.Event, problem: ClusterError) -> None:
    """Raise in the main thread, again and again; at last end the process and Ray's."""
    ends_s = time.monotonic() + _PATIENCE_S
    main = threading.main_thread().ident
    assert main is not None
    while time.monotonic() < ends_s:
        if done.is_set():
            return
        signal.pthread_kill(main, _SIGNAL)
        done.wait(2)
    if not done.is_set():
        end_at_once(problem)


def end_at_once(problem: ClusterError) -> None:
    """End this process and the Ray that it started; its runs end FAILED."""
    for run in held():
        if run.has_begun() and run.ended() is None:
            run.end("FAILED", str(problem))
    for process in own_processes().values():
        process.kill()
    os._exit(1)
