"""Progress of a long job: a bar with rate and ETA on a terminal, a line now and then in a log.

Progress goes to standard error, so a command's own output stays clean.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(total: int, what: str, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`, which reports that `n` more are done.

    >>> with progress(len(cases), "prepare", "cases") as advance:
    ...     for case in cases:
    ...         advance(1)

    Args:
        total: how many there are; 0 if unknown.
        what: the job, such as "prepare".
        unit: the things counted: "cases", or "bytes", shown as MB.
        done: how many were done before.
    """
    start, start_s = done, time.monotonic()
    scale, unit = (1e6, "MB") if unit == "bytes" else (1, unit)

    def state() -> str:
        rate = (done - start) / scale / max(time.monotonic() - start_s, 1e-9)
        return f"{done / scale:.{2 if scale > 1 else 0}f}{of} {unit}, {rate:.3g} {unit}/s"

    of = f"/{total / scale:.{2 if scale > 1 else 0}f}" if total else ""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total or None, completed=done, state="")

            def advance(n: int) -> None:
                nonlocal done
                done += n
                bar.update(task, completed=done, state=state())

            yield advance
        return

    last_s = start_s

    def tell(n: int) -> None:
        nonlocal done, last_s
        done += n
        now_s = time.monotonic()
        if now_s - last_s >= SECONDS_BETWEEN_LINES and done < total:
            last_s = now_s
            eta_s = (total - done) * (now_s - start_s) / max(done - start, 1)
            say(f"{what}: {state()}, ETA {eta_s:.0f} s")

    yield tell
    say(f"{what}: {state()}, {time.monotonic() - start_s:.1f} s")


def say(text: str) -> None:
    """Print a line on standard error, above the bar if there is one."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def meanwhile(work: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call a function now and then in a thread while the block runs, and a last time after it."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(every_s):
            work()

    thread = threading.Thread(target=repeat, name="meanwhile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        work()
