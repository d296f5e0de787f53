"""Interrupts the block when Ray is gone. Ray itself would wait for minutes, or for ever."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray

from gliotrail.cluster.ray_internals import own_processes
from gliotrail.errors import ClusterError
from gliotrail.progress import say
from gliotrail.runs.owner import held

_EVERY_S: Final = 1.0
_SILENCE_S: Final = 30.0
"""A cluster's head may restart within this time."""
_PATIENCE_S: Final = 20.0
"""The time that the process has to end by itself; then it is ended."""


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
        look = _of_own() if own else _of_another()
        while not done.wait(_EVERY_S):
            what = look()
            if what is not None:
                do = "the same command goes on"
                problem.append(ClusterError("Ray is gone", got=what, do=do))
                _break_off(done, problem[0])
                return

    before = signal.signal(signal.SIGUSR1, handle)
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
        signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)


def _of_own() -> Callable[[], str | None]:
    processes = own_processes()

    def look() -> str | None:
        for name, process in processes.items():
            code = process.poll()
            if code is not None:
                return f"its {name} ended with {code}"
        return None

    return look


def _of_another() -> Callable[[], str | None]:
    """Look whether its head takes connections."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    seen_s = time.monotonic()

    def look() -> str | None:
        nonlocal seen_s
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            silent_s = time.monotonic() - seen_s
            silence = f"its head at {host}:{port} does not answer for {silent_s:.0f} s: {error}"
            return silence if silent_s > _SILENCE_S else None
        seen_s = time.monotonic()
        return None

    return look


def _break_off(done: threading.Event, problem: ClusterError) -> None:
    """Raise in the main thread, again and again; at last end the process and Ray's."""
    ends_s = time.monotonic() + _PATIENCE_S
    main = threading.main_thread().ident
    assert main is not None
    while time.monotonic() < ends_s:
        if done.is_set():
            return
        signal.pthread_kill(main, signal.SIGUSR1)
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
    say(f"error: {problem}")
    os._exit(1)
