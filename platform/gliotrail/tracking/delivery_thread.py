"""Delivery to MLflow while runs go on. Training never waits for a tracking server.

The delivery's own thread imports MLflow: that takes seconds, during which Ray starts.
"""

import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gliotrail.errors import GliotrailError, Stopped
from gliotrail.paths import state_dir
from gliotrail.progress import say
from gliotrail.runs.addresses import reason, tracking_uri
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.runs.owner import Owner, claim, heartbeat_s, held, release
from gliotrail.runs.stop import forget, stop_s, stopped_by_signals
from gliotrail.runs.webhook import alerting
from gliotrail.tracking.heartbeat import Heartbeat

_AT_A_TIME_S = 1.0  # the longest that other runs hold up this one's new points
_AGAIN_S = 5.0
"""The pause between the kill of a delivery process and the start of another."""

Hold = Callable[[RunFolder], None]
"""Hold and deliver one more run, as a part."""


class DeliveryThread:
    """Delivers runs from a thread beside the training.

    Runs are delivered in order: a sweep before its trials; more may be added at the end. Then what
    other runs of this checkout left is delivered, too, a second at a time.
    """

    def __init__(
        self, runs: Sequence[RunFolder], every_s: float = 1.0, others_too: bool = False
    ) -> None:
        self._runs, self._every_s = runs, every_s
        self._others: list[RunFolder] | None = None if others_too else []
        self._told: dict[Path, object] = {}
        self._ids: dict[str, str] = {}  # MLflow's, by our own
        self._closing, self._tried = threading.Event(), threading.Event()
        self._given_up = False
        self._ends_s = math.inf  # of trying again, after the first try since `close`
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        pause_s = self._every_s
        while True:
            last = self._closing.is_set()
            try:
                self._deliver_news()
            except Exception as error:  # noqa: BLE001 - whatever a server does, training goes on
                self.problem = reason(error)
                # at most a heartbeat's interval, within which delivery resumes after an outage
                pause_s = min(2 * pause_s, heartbeat_s())
            else:
                self.problem, pause_s = None, self._every_s
                if self._told and not last:
                    self._deliver_others()
            if last:
                self._tried.set()
                if self.problem is None or time.monotonic() + pause_s > self._ends_s:
                    return
                time.sleep(pause_s)
            elif self._given_up:
                return
            else:
                self._closing.wait(pause_s)

    def _deliver_news(self) -> None:
        seen = [(run, now) for run in self._runs if (now := _progress_of(run)) is not None]
        news = [(run, now) for run, now in seen if self._told.get(run.root) != now]
        if not news:
            return
        from gliotrail.tracking.client import client
        from gliotrail.tracking.delivery import deliver

        server, first = client(), seen[0]
        # the first one each time: if it was deleted in MLflow, it is made again as the parent
        before, news = dict(self._ids), [first, *(one for one in news if one != first)]
        for run, now in news:
            self._ids[run.describe()["id"]] = deliver(run, server, above=self._ids)
            self._told[run.root] = now
            if run is first[0] and before and self._ids != before:
                news += [one for one in seen[1:] if one not in news]

    def _deliver_others(self) -> None:
        """Deliver what runs without a holder left, killed ones included."""
        if self._others == []:
            return
        from gliotrail.tracking.sync import clean_up, deliver_some

        try:
            if self._others is None:
                self._others = clean_up()
            ends_s = time.monotonic() + _AT_A_TIME_S
            enough = lambda: self._closing.is_set() or time.monotonic() > ends_s  # noqa: E731
            self._others = deliver_some(self._others, enough)
        except Exception:  # noqa: BLE001 - `gliotrail runs sync` reports what is wrong
            self._others = []

    def close(self, timeout_s: float = 30.0, again_for_s: float = 0.0) -> str | None:
        """Deliver what is left: wait for one try, within the time.

        Args:
            again_for_s: how long its thread goes on trying if that fails.

        Returns:
            None, or why something could not be delivered; `gliotrail runs sync` does it later.
        """
        self._ends_s = time.monotonic() + again_for_s
        self._closing.set()
        if self._tried.wait(timeout_s):
            return self.problem
        self._given_up = not again_for_s  # the hanging request is its last
        return "the tracking server hangs"

    def join(self) -> None:
        """Wait until everything is delivered, or until the time to try again is over."""
        self._thread.join()


class DeliveryProcess:
    """Delivers runs from a process of its own: see `delivery_process`.

    If it is killed, for example by a machine short of memory, another is started, which delivers
    everything.
    """

    def __init__(self, runs: Sequence[RunFolder]) -> None:
        self._runs, self._closing = list(runs), threading.Event()
        self._lock = threading.Lock()  # of `_runs` and `_process`
        self._process = self._start()
        threading.Thread(target=self._start_again, name="delivery", daemon=True).start()

    def _start(self) -> subprocess.Popen[str]:
        # -P: no module of the current folder is taken for one of Python's own
        words = [sys.executable, "-P", "-m", "gliotrail.tracking.delivery_process"]
        words += [str(run.root) for run in self._runs]
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal must not reach it
            env={**os.environ, "GLIOTRAIL_STATE": str(state_dir()), "PYTHONPATH": path},
        )

    def _start_again(self) -> None:
        while not self._closing.is_set() and self._process.wait() < 0:
            if self._closing.wait(_AGAIN_S):
                return
            with self._lock:
                if not self._closing.is_set():
                    self._process = self._start()

    def add(self, run: RunFolder) -> None:
        """Deliver one more run."""
        with self._lock:
            self._runs.append(run)
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # it is gone: another is started with all runs
                self._process.stdin.write(f"{run.root}\n")
                self._process.stdin.flush()

    def close(self, timeout_s: float = 30.0) -> str | None:
        """Like `DeliveryThread.close`; what is late is tried again for ten minutes."""
        with self._lock:
            self._closing.set()
            if self._process.poll() is not None and self._process.returncode < 0:
                self._process = self._start()
        process, ends_s = self._process, time.monotonic() + timeout_s
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write("all\n")
        going_on = "its delivery goes on for ten minutes"
        told = select.poll()  # select() takes no descriptor above 1023
        told.register(process.stdout, select.POLLIN)
        if not told.poll(1000 * timeout_s):
            return f"the tracking server is slow; {going_on}"
        if printed := process.stdout.read().strip():
            return f"{printed}; {going_on}"
        with suppress(subprocess.TimeoutExpired):
            if code := process.wait(max(0.0, ends_s - time.monotonic())):
                return f"its delivery ended with exit code {code}"
        return None


@contextmanager
def tracked(
    run: RunFolder,
    parts: Sequence[RunFolder] = (),
    goes_on: bool = False,
    by_process: bool = False,
) -> Iterator[Hold]:
    """Hold a run, and its parts, and deliver them while the block works on them.

    Args:
        goes_on: the block opens the run again if it FINISHED. Other FINISHED runs are not held.
        by_process: a process of its own delivers, and outlives this one if this is killed.

    Yields:
        a function that adds a part later.

    If the block fails, the run ends FAILED with the reason; if it was stopped, KILLED. So do its
    parts.

    Raises:
        TrackingError: another process holds one of them.
    """
    runs: list[RunFolder] = []
    gone: set[Owner] = set()
    heartbeat_s(), stop_s(), tracking_uri()  # wrong values raise before anything starts
    outermost = not held()
    with ExitStack() as closing:

        def hold(each: RunFolder) -> None:
            if not each.is_finished() or (goes_on and each is run):
                claim(each, gone=gone)
                closing.callback(release, each)
                if outermost:
                    forget(each)
            runs.append(each)
            if isinstance(delivery, DeliveryProcess):
                delivery.add(each)

        delivery: DeliveryThread | DeliveryProcess | None = None
        for each in (run, *parts):
            hold(each)
        if outermost:
            if not run.is_finished():
                closing.enter_context(alerting(run))
            closing.callback(Heartbeat(run, there=not by_process).close)
            closing.enter_context(stopped_by_signals())
        if by_process:
            delivery = DeliveryProcess(runs)
        else:
            delivery = DeliveryThread(runs, others_too=outermost)
        patience_s = 30.0
        try:
            yield hold
        except BaseException as error:
            reason = str(error) if isinstance(error, GliotrailError) else repr(error)
            if run.has_begun() and not run.is_finished():
                killed = isinstance(error, KeyboardInterrupt | Stopped)
                patience_s = 10.0 if killed else patience_s
                run.end("KILLED" if killed else "FAILED", reason[:500])
            for part in runs[1:]:
                if part.has_begun() and part.ended() is None:
                    part.end("KILLED", f"the run above ended: {reason}"[:500])
            raise
        finally:
            late = delivery.close(patience_s)
            if late:
                later = "`gliotrail runs sync`, or the next run, delivers it later"
                say(f"not all of it is in MLflow yet ({late}); {later}")


def _progress_of(run: RunFolder) -> object:
    """Changes whenever there is something to deliver; None before the run began."""
    if not run.has_begun():
        return None
    if (ended := run.ended_ns()) is not None:  # most of a thousand trials have: read no more
        return ended
    manifests = sum(1 for _ in run.root.glob("checkpoints/*/manifest.json"))
    return manifests, (run.root / MODEL_FILE).exists()
