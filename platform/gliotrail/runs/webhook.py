"""Posts one JSON line to the address GLIOTRAIL_WEBHOOK when a run ends, fails or stands still.

If the address does not answer, training and delivery to MLflow go on all the same.
"""

import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError

from gliotrail.errors import ParamsError
from gliotrail.progress import say
from gliotrail.runs.addresses import shown
from gliotrail.runs.journal import RunFolder

WEBHOOK: Final = "GLIOTRAIL_WEBHOOK"
STALL: Final = "GLIOTRAIL_STALL_S"
NOT_FINITE_FILE: Final = "not_finite.json"
"""An artifact: what led to a loss or a gradient of NaN or infinity."""
_PATIENCE_S: Final = 5.0
_STALL_S: Final = 600.0
_EVENTS: Final = {"FINISHED": "end", "KILLED": "stop", "FAILED": "failure"}


def address() -> str | None:
    """Where alerts go; None if no address is set.

    Raises:
        ParamsError: it is not an http address.
    """
    url = os.environ.get(WEBHOOK)
    if url and not url.startswith(("http://", "https://")):
        raise ParamsError(WEBHOOK, wanted="an http:// or https:// address", got=repr(url))
    return url or None


def tell(event: str, run: RunFolder, **more: Any) -> None:
    """Post one line: the event (end, failure, nan, stop, stall), the run, and its results."""
    url = address()
    if url is None or not run.has_begun():
        return
    says = run.describe()
    fields = {"event": event, "run": says["id"], "folder": run.root.name, "name": says["name"]}
    body = json.dumps(fields | {"kind": says["tags"].get("gliotrail.kind")} | more).encode() + b"\n"
    request = urllib.request.Request(  # noqa: S310 - http or https, as `address` has it
        url, body, {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=_PATIENCE_S).close()  # noqa: S310
    except (URLError, OSError, ValueError) as error:
        say(f"could not post {event} to {shown(url)}: {error}")


@contextmanager
def alerting(run: RunFolder) -> Iterator[None]:
    """Post how the block's run ends, and if it takes no step for ten minutes."""
    if address() is None:
        yield
        return
    patience_s = float(os.environ.get(STALL) or _STALL_S)
    done = threading.Event()

    def watch() -> None:
        last, since_s, said = 0, time.monotonic(), False
        while not done.wait(min(5.0, patience_s / 4)):
            size = sum(path.stat().st_size for path in run.root.glob("attempts/*.jsonl"))
            if size != last:
                last, since_s, said = size, time.monotonic(), False
            elif not said and time.monotonic() - since_s > patience_s:
                said = True
                tell("stall", run, seconds=round(time.monotonic() - since_s))

    thread = threading.Thread(target=watch, name="webhook", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        ended = run.ended()
        if ended is not None:
            led_there: Path = run.root / "artifacts" / NOT_FINITE_FILE
            event = _EVENTS[ended["status"]]
            event = "nan" if event == "failure" and led_there.is_file() else event
            tell(event, run, status=ended["status"], reason=ended["reason"],
                 score=ended["summary"].get("score"))  # fmt: skip
