"""A process's heartbeat, from a thread of its own: no delivery, however long, holds it up.

Between two of its own it looks after the others: runs whose processes are gone are closed.
"""

import threading
from contextlib import suppress

from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import read_notes
from gliotrail.runs.owner import Watch, beat, beat_of, heartbeat_s, held
from gliotrail.runs.stop import ask


class Heart:
    """Beats for all runs that this process holds: in their folders, and in MLflow for one of them.

    What MLflow knows of the others has the same owner, so all have one fate.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run, self._every_s = run, heartbeat_s()
        self._closing, self._watch = threading.Event(), Watch()
        self._thread = threading.Thread(target=self._work, name="heart", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        self._beat_here()
        # twice in an interval, so that one that is late is none that is missing
        while not self._closing.wait(self._every_s / 2):
            self._beat_here()
            try:
                self._beat_there()
            except Exception:  # noqa: BLE001 - the server is away: what is seen then counts nothing
                self._watch.forget()

    def _beat_here(self) -> None:
        for run in held():
            with suppress(OSError):  # the disk is full, say: by the next beat it may not be
                if run.ended() is None:
                    beat(run)

    def _beat_there(self) -> None:
        # MLflow takes seconds to import, in which Ray starts
        from gliotrail.tracking.client import client
        from gliotrail.tracking.delivery import HEARTBEAT_TAG, STOP_TAG, deliver
        from gliotrail.tracking.reaper import reap, was_closed

        server, told = client(), read_notes(self._run)
        if "run_id" in told and self._run.ended() is None:
            server.set_tag(told["run_id"], HEARTBEAT_TAG, beat_of(self._run))
            by = server.get_run(told["run_id"]).data.tags.get(STOP_TAG)
            if by is not None:  # asked for on another machine
                ask(self._run, by)
                server.delete_tag(told["run_id"], STOP_TAG)
        if was_closed(server):  # by one who couldn't see that this process lives
            for run in held():
                if run.has_begun():
                    deliver(run, server)
        reap(self._watch)

    def close(self, timeout_s: float = 1.0) -> None:
        """Beat no more."""
        self._closing.set()
        self._thread.join(timeout_s)
