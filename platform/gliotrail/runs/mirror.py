"""A run's folder on machines that share no disk: final files are copied through the store.

In the store `gliotrail/runs/<folder's name>/` has the same files as the folder. Checkpoints are
never changed there, and their manifest comes last. A live journal is there from its attempt's start
(see `journal`): an older attempt that finds a newer one sends nothing more, and stops.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gliotrail.errors import ClusterError
from gliotrail.files import locked, replacing
from gliotrail.progress import meanwhile, say
from gliotrail.runs.journal import MODEL_FILE, RUN_FILE, TRACEBACK_FILE, RunFolder
from gliotrail.runs.stop import STOP_FILE, note
from gliotrail.runs.store import Store

_EVERY_S, _SELDOM_S, _PATIENCE_S = 1.0, 8.0, 600.0
_LOCK = "mirror.lock"
_STATE, _MANIFEST, _ENDED, _OWNER = "state.safetensors", "manifest.json", "ended.json", "owner.json"
_WHOLE: Final = (RUN_FILE, _ENDED, MODEL_FILE, TRACEBACK_FILE, "failed.json", "decisions.csv",
                 "population.csv", "asked.json")  # fmt: skip
_OF_AN_ATTEMPT: Final = (_ENDED, TRACEBACK_FILE, "failed.json", STOP_FILE)


class Mirror:
    """The mirror of one run."""

    def __init__(self, run: RunFolder, store: Store) -> None:
        self.run, self._store = run, store
        self._at = f"gliotrail/runs/{run.root.name}"
        self._journals: set[str] = set()  # those of other machines
        self._came = 0

    def bring(self, to_go_on: bool = True) -> bool:
        """Copy here what this folder lacks.

        Args:
            to_go_on: also the state that a training resumes from, and how the run ended; else
                checkpoints without their state, to follow a run on another machine.

        Returns:
            whether there was anything.

        Raises:
            ClusterError: as `Store`.
        """
        with locked(self.run.root / _LOCK):  # driver and worker may be on one machine
            before = self._came
            self._bring(set(self._store.names(self._at)), to_go_on)
            return self._came > before

    def _bring(self, names: set[str], to_go_on: bool) -> None:
        manifests = [name for name in names if name.endswith(f"/{_MANIFEST}")]
        new = sorted(name for name in manifests if not (self.run.root / name).is_file())
        for manifest in new:
            folder = manifest.removesuffix(_MANIFEST)
            for name in sorted(names - {manifest, folder + _STATE}):
                if name.startswith(folder):
                    self._download(name)
            self._download(manifest)
        for name in names:
            own = (self.run.root / name).is_file()
            if name.startswith("attempts/") and (not own or (new and name in self._journals)):
                self._download(name)
                self._journals.add(name)
            elif to_go_on and not own and (name in _WHOLE or name.startswith("artifacts/")):
                self._download(name)
        history = self.run.history()
        if to_go_on and history:
            newest = f"checkpoints/{history[-1].folder.name}/{_STATE}"
            if newest in names and not (self.run.root / newest).is_file():
                self._download(newest)

    def _download(self, name: str) -> None:
        try:
            with replacing(self.run.root / name) as partial:
                self._store.download(f"{self._at}/{name}", partial)
            self._came += 1
        except FileNotFoundError:
            return  # a state that a newer one has replaced meanwhile

    def send_whole(self) -> None:
        """Send the run's description, and how it ended."""
        for path in [*(self.run.root / n for n in _WHOLE), *self.run.root.glob("artifacts/*")]:
            if path.is_file():
                self._upload(path)

    def send(self, attempt: int | None = None) -> None:
        """Send final checkpoints that the store lacks, oldest first, and the live journals' names.

        Args:
            attempt: this process's; if the store has a newer one, this one is asked to stop.

        Raises:
            ClusterError: as `Store`.
        """
        names = set(self._store.names(self._at))
        for path in sorted(self.run.root.glob("attempts/*.jsonl")):
            if f"attempts/{path.name}" not in names:
                self._upload(path)
        here = {c.folder.name: c for c in self.run.history()}
        for name, checkpoint in here.items():
            if f"checkpoints/{name}/{_MANIFEST}" in names:
                continue
            for file in checkpoint.sha256:
                self._upload(checkpoint.folder / file)
            for path in sorted(self.run.root.glob("attempts/*.jsonl"))[-1:]:
                self._upload(path)
            started = self._store.names(f"{self._at}/attempts")
            if attempt is not None and _newest(map(Path, started)) > attempt:
                note(self.run, "a newer attempt on another machine")
                return
            self._upload(checkpoint.folder / _MANIFEST)
        kept = list(here)[-2:]
        for name in names:
            checkpoint_name = name.split("/")[1] if name.endswith(f"/{_STATE}") else ""
            if checkpoint_name in here and checkpoint_name not in kept:
                self._store.remove(f"{self._at}/{name}")

    def _upload(self, path: Path) -> None:
        try:
            name = path.relative_to(self.run.root).as_posix()
            self._store.upload(path, f"{self._at}/{name}")
        except FileNotFoundError:
            return  # a state that a newer one has replaced

    def begin(self) -> None:
        """The run's holder starts or resumes it: remove an earlier end."""
        for name in _OF_AN_ATTEMPT:
            self._store.remove(f"{self._at}/{name}")
            if name != STOP_FILE:  # this request is a new one
                (self.run.root / name).unlink(missing_ok=True)
        self._upload(self.run.root / _OWNER)
        self.send()
        self.send_whole()

    def take_part(self) -> None:
        """On a worker's machine: go on from what the store has.

        In a folder that isn't the holder's, a recorded end is that of an earlier attempt.

        Raises:
            ClusterError: as `Store`.
        """
        owner = self.run.root / _OWNER
        here = owner.read_bytes() if owner.is_file() else None
        if self._store.read(f"{self._at}/{_OWNER}") != here:
            for name in _OF_AN_ATTEMPT:
                (self.run.root / name).unlink(missing_ok=True)
        self.bring()

    def tell_of_stop(self) -> None:
        """Pass a request to stop on to the other machines, if there is one."""
        path = self.run.root / STOP_FILE
        if path.is_file():
            self._upload(path)

    def hear_of_stop(self) -> None:
        """Take over a request to stop from another machine."""
        if not (self.run.root / STOP_FILE).is_file():
            by = self._store.read(f"{self._at}/{STOP_FILE}")
            if by is not None:
                note(self.run, by.decode())


@contextmanager
def sending(mirror: Mirror | None) -> Iterator[None]:
    """While the block trains, its checkpoints go to the store; it never waits for them.

    At the end it waits until all are there. Without a mirror this does nothing.

    Raises:
        ClusterError: at the end, the store does not answer for ten minutes.
    """
    if mirror is None:
        yield
        return

    sent, stops = (0, 0), _Seldom()

    def work() -> None:
        nonlocal sent
        journals = list(mirror.run.root.glob("attempts/*.jsonl"))
        now = len(journals), len(list(mirror.run.root.glob(f"checkpoints/*/{_MANIFEST}")))
        if now != sent:
            mirror.send(_newest(journals))
            sent = now
        if stops.is_due():
            mirror.hear_of_stop()
            stops.asked(news=False)

    with _sitting_out(work):
        yield


@contextmanager
def following(mirror: Mirror | None) -> Iterator[None]:
    """While the block waits for workers on other machines, their checkpoints come here.

    Requests to stop the run are passed on in both directions. Without a mirror this does nothing.

    Raises:
        ClusterError: at the end, the store does not answer for ten minutes.
    """
    if mirror is None:
        yield
        return

    news, stops = _Seldom(), _Seldom()

    def work() -> None:
        if news.is_due():
            news.asked(mirror.bring(to_go_on=False))
        mirror.tell_of_stop()
        if stops.is_due():
            mirror.hear_of_stop()
            stops.asked(news=False)

    try:
        with _sitting_out(work):
            yield
    finally:
        mirror.bring()


@contextmanager
def telling_of_stops(mirrors: Collection[Mirror]) -> Iterator[None]:
    """While the block waits for runs on other machines, pass on requests to stop them.

    Args:
        mirrors: of the running ones; may change meanwhile.

    Raises:
        ClusterError: at the end, the store does not answer for ten minutes.
    """

    def work() -> None:
        for mirror in list(mirrors):
            mirror.tell_of_stop()

    with _sitting_out(work):
        yield


class _Seldom:
    """When to ask the store again: the longer nothing was new, the later, up to 8 s."""

    def __init__(self) -> None:
        self._pause_s, self._due_s = _EVERY_S, 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._due_s

    def asked(self, news: bool) -> None:
        self._pause_s = _EVERY_S if news else min(2 * self._pause_s, _SELDOM_S)
        self._due_s = time.monotonic() + self._pause_s


@contextmanager
def _sitting_out(work: Callable[[], None]) -> Iterator[None]:
    """Work beside the block, and a last time after it; try again during the store's outages."""
    problem: Exception | None = None

    def try_again() -> None:
        nonlocal problem
        try:
            work()
            problem = None
        except (ClusterError, OSError) as error:
            if problem is None:
                say(f"{error}; trying again")
            problem = error

    try:
        with meanwhile(try_again, _EVERY_S):
            yield
    finally:
        ends_s = time.monotonic() + _PATIENCE_S
        while problem is not None:
            if time.monotonic() > ends_s:
                raise problem
            time.sleep(_EVERY_S)
            try_again()


def _newest(journals: Iterable[Path]) -> int:
    """The newest attempt, by the names of live journals; 0 before the first."""
    return max((int(path.stem) for path in journals), default=0)
