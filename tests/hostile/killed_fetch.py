"""Fetches killed by SIGKILL, before or after a call that changes the disk.

`python -m tests.hostile.killed_fetch SOURCE OUT URL MD5`, then on each line of its input a number:
of the moment to be killed at, 0 for a fetch that is not. It answers with a line: the names of the
calls, one for each moment; none for a fetch that was killed.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from gliotrail import params
from gliotrail.imaging.fetch import fetch

CHANGES = {"write", "sendfile", "mkdir", "open", "rename", "replace", "unlink", "rmdir", "__exit__"}


def fetch_until(moment: int, source: str, out: Path, url: str, md5: str) -> list[str]:
    """Fetch, and be killed there; the call of each moment otherwise."""
    moments: list[str] = []

    def profile(frame: object, event: str, function: Any) -> None:
        name = getattr(function, "__name__", "")
        is_text = isinstance(getattr(function, "__self__", None), str)  # which has a `replace`, too
        if event.startswith("c_") and name in CHANGES and not is_text:
            moments.append(name)
            if len(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)
    fetch(params.Fetch(source=source), out, cache=out.parent / "cache", url=url, md5=md5)
    sys.setprofile(None)
    return moments


def main() -> None:
    """Each fetch in a process of its own, forked from this one, which has loaded all it needs."""
    source, out, url, md5 = sys.argv[1:]
    for line in sys.stdin:
        child = os.fork()
        if not child:
            print(*fetch_until(int(line), source, Path(out), url, md5), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            print(flush=True)


if __name__ == "__main__":
    main()
