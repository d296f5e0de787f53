"""How the bench asks a process, ours or the peers', to do a piece of work and to time it.

A line `part entrant` in, a line of JSON out: the seconds that it took, and the most memory that the
process had the first time. Each piece of work is made ready and, unless it is long, done once
before it is timed. Both kinds of process have this file beside their script.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Work = Callable[[], object]
Parts = Mapping[str, Mapping[str, Callable[[], Work]]]
"""part -> entrant -> what makes the work ready."""
LONG_S = 3.0
"""What takes longer needs no warming up."""


def answer(parts: Parts) -> None:
    """Until the input ends. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ready: dict[str, Work] = {}
    peaks_mb: dict[str, float] = {}
    for line in sys.stdin:
        part, entrant = line.split()
        seconds = None
        if line not in ready:
            ready[line] = parts[part][entrant]()
            forget_peak()
            seconds = timed(ready[line])
            peaks_mb[line] = peak_mb()
        if seconds is None or seconds < LONG_S:
            seconds = timed(ready[line])
        replies.write(json.dumps([seconds, peaks_mb[line]]) + "\n")
        replies.flush()


def timed(work: Work) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_mb() -> float:
    """The most memory that this process had since `forget_peak`."""
    (line,) = (of for of in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in of)
    return int(line.split()[1]) / 1000


def forget_peak() -> None:
    """The most that it had is what it has."""
    with contextlib.suppress(OSError):  # some containers don't let it
        Path("/proc/self/clear_refs").write_text("5")
