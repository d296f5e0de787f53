"""How the bench asks a process, ours or the peers', to do a piece of work and to time it.

A line `part entrant` in, a line of JSON out: the seconds that it took. Each piece of work is made
ready and done once before it is timed. Both kinds of process have this file beside their script.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]
Parts = Mapping[str, Mapping[str, Callable[[], Work]]]
"""part -> entrant -> what makes the work ready."""


def answer(parts: Parts) -> None:
    """Until the input ends. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ready: dict[str, Work] = {}
    for line in sys.stdin:
        part, entrant = line.split()
        if line not in ready:
            ready[line] = parts[part][entrant]()
            ready[line]()
        started = time.perf_counter()
        ready[line]()
        replies.write(json.dumps(time.perf_counter() - started) + "\n")
        replies.flush()
