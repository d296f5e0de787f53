"""Delivers runs from a process of its own: `python -m gliotrail.tracking.delivery_process RUN ..`.

The loop's process never imports MLflow, and never waits for it. If that process is killed, this one
closes its runs as KILLED, delivers what is final, and ends.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from gliotrail.runs.journal import RunFolder
from gliotrail.runs.owner import Owner, close_if, is_alive, owner_of
from gliotrail.tracking.delivery_thread import DeliveryThread
from gliotrail.tracking.heartbeat import Heartbeat
from gliotrail.tracking.reaper import GONE

_LOOK_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 600.0
"""How long it goes on trying after the loop's end, while the server is away."""


def main(*roots: str) -> None:
    """Deliver until the line `all` on standard input; other lines are folders of further runs.

    After it, or when the parent process is gone, deliver what is left. If the first try fails, the
    reason is printed, and it goes on trying for ten minutes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a batch system signals every process
        signal.signal(number, signal.SIG_IGN)
    runs = [RunFolder(Path(root)) for root in roots]
    holder = owner_of(runs[0])
    delivery = DeliveryThread(runs, others_too=True)
    beats = Heartbeat(runs[0], holder=holder) if holder else None
    is_all = _wait(holder, lambda root: runs.append(RunFolder(Path(root))))
    if beats:
        beats.close()
    if not is_all and holder is not None:
        for run in filter(RunFolder.has_begun, runs):
            close_if(run, holder, GONE)
    late = delivery.close(_PATIENCE_S, again_for_s=_PATIENCE_S)
    with suppress(BrokenPipeError):
        os.write(1, (late or "").encode())  # to the parent process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for held in (1, 2):  # whoever reads the parent's output must not wait for this process
        os.dup2(nowhere, held)
    delivery.join()


def _wait(holder: Owner | None, add: Callable[[str], None]) -> bool:
    """Wait for the line `all` (True), or until the holder is gone (False)."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        lines.put("")  # it ended without `all`

    threading.Thread(target=read, daemon=True).start()
    is_open = True
    while True:
        with suppress(queue.Empty):
            line = lines.get(timeout=_LOOK_EVERY_S)
            is_open = bool(line)
            if line.startswith("/"):
                add(line)
                continue
            if line:
                return True
        # its other children may hold the pipe open
        alive = is_alive(holder) if holder else None
        if alive is False or (alive is None and not is_open):
            return False


if __name__ == "__main__":
    main(*sys.argv[1:])
