"""Writes one attempt into a run's folder, whose layout is in `journal`."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gliotrail.errors import TrackingError
from gliotrail.files import locked, sha256, sync_below, write_durably, write_json
from gliotrail.runs.disk_budget import budget_bytes, bytes_of_lately
from gliotrail.runs.journal import (
    LOCK,
    SAVED,
    SEGMENT_FILE,
    STATE_FILE,
    Checkpoint,
    Point,
    RunFolder,
    newest_attempt,
    now_ms,
    to_line,
)


class Writer:
    """One attempt's writer: points go to its journal at once, then into the next checkpoint.

    If the runs take more disk than their budget, checkpoints have no pictures.
    """

    def __init__(self, run: RunFolder, made_on: Mapping[str, str] | None = None) -> None:
        self._root, self._made_on = run.root, made_on or {}
        self._room_bytes = budget_bytes() - bytes_of_lately(run.root.parent)
        with locked(self._root / LOCK):
            self._last = next(reversed(run.history()), None)
            self.attempt = newest_attempt(self._root) + 1
            journal = self._root / "attempts" / f"{self.attempt:04d}.jsonl"
            journal.parent.mkdir(exist_ok=True)
            self._journal = journal.open("xb", buffering=0)
        self._segment: list[bytes] = []
        self._files: dict[str, bytes] = {}
        self._coming: Future[Checkpoint] | None = None
        self.last_step = self._last.step if self._last else 0  # final or pending

    def write(self, step: int, metrics: Mapping[str, float], time_ms: int | None = None) -> None:
        """Record points, with this time for ever; by default now."""
        time_ms = now_ms() if time_ms is None else time_ms
        lines = [to_line(Point(key, float(v), step, time_ms)) for key, v in metrics.items()]
        self._journal.write(b"".join(lines))
        self._segment += lines

    def adopt(self, lines: bytes) -> None:
        """Record points of another journal, with their own times."""
        self._journal.write(lines)
        self._segment.append(lines)

    def attach(self, name: str, content: bytes) -> None:
        """Add a file to the next checkpoint."""
        self._files[name] = content

    def checkpoint(self, step: int, state: bytes) -> Checkpoint:
        """Make all since the last checkpoint final: the files first, the manifest last.

        Raises:
            OSError: it can't be stored.
            TrackingError: a newer attempt has begun; this one must stop.
        """
        self.begin_checkpoint(step, state)
        made = self.finish_checkpoint()
        assert made is not None
        return made

    def begin_checkpoint(
        self, step: int, state: bytes | None = None, save: Callable[[Path], object] | None = None
    ) -> None:
        """The same without waiting for the disk, which may take longer than a step.

        Args:
            save: writes files into a given folder, in place of a state.

        Raises:
            OSError, TrackingError: as `checkpoint`, for the checkpoint before.
        """
        self.finish_checkpoint()
        if save is not None:
            own = self._folder_of(step) / SAVED
            own.mkdir(parents=True)
            save(own)
        self._room_bytes -= sum(map(len, self._files.values()))
        pictures = self._files if self._room_bytes >= 0 else {}
        left_out = len(self._files) - len(pictures)
        files = {SEGMENT_FILE: b"".join(self._segment), **pictures}
        if state is not None:
            files = {STATE_FILE: state, **files}
        self._segment, self._files, self.last_step = [], {}, step
        storing = ThreadPoolExecutor(1, "checkpoint")  # a new one: no thread outlives a fork
        self._coming = storing.submit(self._store, step, files, left_out)
        storing.shutdown(wait=False)

    def finish_checkpoint(self) -> Checkpoint | None:
        """Wait until the pending checkpoint is final; None if there is none.

        Raises:
            OSError, TrackingError: as `checkpoint`.
        """
        coming, self._coming = self._coming, None
        return coming.result() if coming else None

    def _store(self, step: int, files: Mapping[str, bytes], left_out: int) -> Checkpoint:
        folder = self._folder_of(step)
        for name, content in files.items():
            write_durably(folder / name, content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        for path in sorted(sync_below(folder / SAVED)):
            digests[path.relative_to(folder).as_posix()] = sha256(path)
        made = Checkpoint(
            folder,
            step,
            self._last.folder.name if self._last else None,
            digests,
            left_out,
            self._made_on,
        )
        manifest = {key: value for key, value in vars(made).items() if key != "folder"}
        with locked(self._root / LOCK):
            newest = newest_attempt(self._root)
            if newest != self.attempt:
                what = f"attempt {self.attempt} is over: attempt {newest} has taken the run"
                raise TrackingError(what, where=self._root)
            write_json(folder / "manifest.json", manifest, durably=True)
            for path in self._root.glob(f"checkpoints/*/{STATE_FILE}"):
                if path.parent.name not in {folder.name, made.previous}:
                    path.unlink()
            for path in self._root.glob(f"checkpoints/*/{SAVED}"):
                if path.parent.name not in {folder.name, made.previous}:
                    shutil.rmtree(path)
        self._last = made
        return made

    def _folder_of(self, step: int) -> Path:
        return self._root / "checkpoints" / f"{step:010d}-{self.attempt:04d}"

    def close(self) -> None:
        """Finish the pending checkpoint, and close the journal.

        Raises:
            OSError, TrackingError: as `checkpoint`.
        """
        with self._journal:
            self.finish_checkpoint()
