"""Stop runs at their next step, with a checkpoint: by Ctrl-C, SIGTERM or `gliotrail runs stop`.

A request is a file in the run's folder; the worker that writes the run looks for it at each step.
The same command goes on from there.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from gliotrail.errors import ParamsError, Stopped, TrackingError
from gliotrail.files import write_durably
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import all_runs, run_named, runs_named
from gliotrail.runs.owner import held, owner_of

STOP_FILE: Final = "stop"
STOP: Final = "GLIOTRAIL_STOP_S"
_DEFAULT_S: Final = 240.0  # less than Ray's limit for jobs: see `submit`
_AGAIN: Final = "what was trained is kept, and the same command goes on"
_BY: Final = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


def ask(run: RunFolder, by: str) -> None:
    """Ask a run to stop, and all others that the same process holds.

    Args:
        by: who or what asks, for the reason that is recorded.
    """
    holder = owner_of(run)
    note(run, by)
    for other in all_runs():
        if holder is not None and owner_of(other) == holder:
            note(other, by)


def note(run: RunFolder, by: str) -> None:
    """Ask one run alone to stop."""
    write_durably(run.root / STOP_FILE, by.encode())


def asked_by(run: RunFolder) -> str | None:
    """Who or what asked a run to stop, if anything did."""
    path = run.root / STOP_FILE
    return path.read_text() if path.is_file() else None


def forget(run: RunFolder) -> None:
    """Remove a request to stop: the run goes on."""
    (run.root / STOP_FILE).unlink(missing_ok=True)


def stop_if_asked(run: RunFolder) -> None:
    """Call it where work can be interrupted.

    Raises:
        Stopped: the run was asked to stop.
    """
    by = asked_by(run)
    if by is not None:
        raise Stopped(f"stopped by {by}", do=_AGAIN)


def ask_here(name: str, by: str) -> str | None:
    """Ask a run of this disk to stop.

    Args:
        name: the run's folder or its own id, or the beginning of one of them.

    Returns:
        the process that works on it; None if no such run is here.

    Raises:
        TrackingError: no process works on it, or several names begin so.
    """
    if not runs_named(name):
        return None
    run = run_named(name)
    holder = owner_of(run)
    if holder is None:
        got = (run.ended() or {}).get("status", "a run that no process works on")
        raise TrackingError(name, wanted="a run that goes on", got=got)
    ask(run, by)
    return str(holder)


def stop_s() -> float:
    """GLIOTRAIL_STOP_S, by default 240: seconds that a step and its checkpoint may take at a stop.

    Raises:
        ParamsError: it is no number of seconds from 1 to 86400.
    """
    text = os.environ.get(STOP) or str(_DEFAULT_S)
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 1 <= float(text) <= 86400:
        raise ParamsError(STOP, wanted="seconds from 1 to 86400", got=repr(text))
    return float(text)


def end_at_once(by: str, number: int) -> None:
    """End this process with a signal's exit code; its runs end KILLED."""
    for run in held():
        if run.has_begun() and run.ended() is None:
            run.end("KILLED", f"stopped at once by {by}")
    os._exit(128 + number)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """In the block, Ctrl-C or SIGTERM asks the runs that this process holds to stop.

    A second one ends the process at once, and so does GLIOTRAIL_STOP_S after the first.

    Signals reach the main thread alone; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    latest: list[threading.Timer] = []

    def handle(number: int, _: Any) -> None:
        by = _BY[signal.Signals(number)]
        if not held():
            raise Stopped(f"stopped by {by}", do=_AGAIN)
        if seen:
            end_at_once(by, number)
        seen.append(number)
        for run in held():
            note(run, by)
        patience_s = stop_s()
        latest.append(threading.Timer(patience_s, end_at_once, (by, number)))
        latest[0].daemon = True
        latest[0].start()
        # not print: the signal may have interrupted one
        what = f"stopping at the next step, with a checkpoint; at once after {patience_s:g} s"
        os.write(2, f"\n{by}: {what}, or if asked once more\n".encode())

    before = {number: signal.signal(number, handle) for number in _BY}
    try:
        yield
    finally:
        for timer in latest:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
