"""A process's heartbeat in its runs' folders and in MLflow, and the closing of dead runs.

Each of the three has a thread of its own, so that neither a long delivery nor a slow server holds
up a heartbeat: without one, another host would take this process for dead.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import read_notes
from gliotrail.runs.owner import Owner, Watch, beat, beat_of, heartbeat_s, held
from gliotrail.runs.stop import ask


class Heartbeat:
    """Beats for all runs that this process holds: in their folders, and in MLflow for one of them.

    In MLflow the others have the same owner, so that one heartbeat stands for all.

    Args:
        there: beat in MLflow, too; else another process does.
        holder: the process that holds the run, where it is not this one.
    """

    def __init__(self, run: RunFolder, there: bool = True, holder: Owner | None = None) -> None:
        self._run, self._every_s = run, heartbeat_s()
        self._closing, self._watch, self._holder = threading.Event(), Watch(), holder
        self._beat_here()
        works = [self._beat_here] if holder is None else []
        works += [self._beat_there, self._look_after_others] if there else []
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=work.__name__, daemon=True)
            for work in works
        ]
        for thread in self._threads:
            thread.start()

    def _repeat(self, work: Callable[[], None]) -> None:
        # twice in an interval, so that a late heartbeat is not a missing one
        while not self._closing.wait(self._every_s / 2):
            with suppress(Exception):  # for example, the server is down: try again next time
                work()

    def _beat_here(self) -> None:
        for run in held():
            with suppress(OSError):
                if run.ended() is None:
                    beat(run)

    def _beat_there(self) -> None:
        # MLflow takes seconds to import, during which Ray starts
        from gliotrail.tracking.client import client
        from gliotrail.tracking.delivery import HEARTBEAT_TAG, STOP_TAG

        delivered = read_notes(self._run)
        if "run_id" not in delivered or self._run.ended() is not None:
            return
        server = client()
        server.set_tag(delivered["run_id"], HEARTBEAT_TAG, beat_of(self._run))
        by = server.get_run(delivered["run_id"]).data.tags.get(STOP_TAG)
        if by is not None:  # asked for on another machine
            ask(self._run, by)
            server.delete_tag(delivered["run_id"], STOP_TAG)

    def _look_after_others(self) -> None:
        """Close runs whose processes are gone; open own runs again that others closed."""
        from gliotrail.tracking.client import client
        from gliotrail.tracking.delivery import deliver
        from gliotrail.tracking.reaper import reap, was_closed

        try:
            server = client()
            if was_closed(server, self._holder):  # by a process that couldn't see this one
                for run in held() if self._holder is None else [self._run]:
                    if run.has_begun():
                        deliver(run, server)
            reap(self._watch)
        except Exception:
            self._watch.forget()  # earlier observations don't count after an outage
            raise

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop beating."""
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout_s / len(self._threads))
