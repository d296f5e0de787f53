"""Runs on their way to MLflow while they go on. Training never waits for a tracking server.

MLflow is imported by the courier's own thread: that takes seconds, in which Ray starts.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gliotrail.errors import GliotrailError
from gliotrail.progress import say
from gliotrail.tracking.journal import MODEL_FILE, RunFolder


class Courier:
    """Delivers runs from a thread beside the training.

    Runs are told in their order: a sweep before its trials.
    """

    def __init__(self, runs: Sequence[RunFolder], every_s: float = 1.0) -> None:
        self._runs, self._every_s = runs, every_s
        self._closing = threading.Event()
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        told: dict[Path, object] = {}
        pause_s = self._every_s
        while True:
            last = self._closing.is_set()
            try:
                for run in self._runs:
                    now = _progress_of(run)
                    if now is not None and told.get(run.root) != now:
                        from gliotrail.tracking.delivery import deliver
                        from gliotrail.tracking.runs import client

                        deliver(run, client())
                        told[run.root] = now
            except Exception as error:  # noqa: BLE001 - whatever a server does, training goes on
                self.problem = f"{type(error).__name__}: {error}".split("\n")[0]
                pause_s = min(2 * pause_s, 60.0)
            else:
                self.problem, pause_s = None, self._every_s
            if last:
                return
            self._closing.wait(pause_s)

    def close(self, timeout_s: float = 30.0) -> str | None:
        """Deliver what is left, within a time.

        Returns:
            None, or why it could not all be delivered; `gliotrail runs sync` does it later.
        """
        self._closing.set()
        self._thread.join(timeout_s)
        return "the tracking server hangs" if self._thread.is_alive() else self.problem


@contextmanager
def tracked(run: RunFolder, parts: Sequence[RunFolder] = ()) -> Iterator[None]:
    """Deliver a run, and its parts, while the block works on them.

    If the block fails, the run ends FAILED with the reason; by Ctrl-C, KILLED.
    """
    courier = Courier([run, *parts])
    try:
        yield
    except BaseException as error:
        if run.has_begun() and not run.is_finished():
            killed = isinstance(error, KeyboardInterrupt)
            told = str(error) if isinstance(error, GliotrailError) else repr(error)
            run.end("KILLED" if killed else "FAILED", told[:500])
        raise
    finally:
        late = courier.close()
        if late:
            say(f"not all of it is in MLflow yet ({late}); `gliotrail runs sync` delivers it later")


def _progress_of(run: RunFolder) -> object:
    """Changes whenever there is something to tell; None before the run began."""
    if not run.has_begun():
        return None
    manifests = sum(1 for _ in run.root.glob("checkpoints/*/manifest.json"))
    return manifests, run.ended(), (run.root / MODEL_FILE).exists()
