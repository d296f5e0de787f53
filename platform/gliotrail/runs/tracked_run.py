"""A running run, for the loop that reports to it.

Reports go to the attempt's journal at once; each checkpoint makes all before it final. Steps that
were final before this attempt began are not recorded again.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from gliotrail.errors import TrackingError
from gliotrail.progress import say
from gliotrail.runs.journal import Point, RunFolder, parse_lines, to_line
from gliotrail.runs.stop import asked_by, stop_if_asked
from gliotrail.runs.writer import Writer

CHECKPOINT_EVERY_S: Final = 60.0
_PLAIN: Final = re.compile(r"[\w-][\w.-]*")

Save = Callable[[Path], object]
"""Saves all that the next step depends on into a given empty folder."""


class TrackedRun:
    """One attempt of a run.

    Args:
        folder: of a run that has begun.
        made_on: see `Writer`.
        every_s: seconds between two checkpoints, if nothing else asks for one.
        stops: whether `report` raises if the run is asked to stop; if not, its loop, which has
            other workers, looks itself.

    Attributes:
        checkpoint: the folder that the last final checkpoint saved; None if there is none.
        last_step: the step of the checkpoint that it resumes from; 0 at the beginning.
        finished: whether it was FINISHED before: then there is nothing to do.
        summary: its results; numbers with a slash in their names are metrics in MLflow.
    """

    def __init__(
        self,
        folder: RunFolder,
        made_on: Mapping[str, str] | None = None,
        every_s: float = CHECKPOINT_EVERY_S,
        stops: bool = True,
    ) -> None:
        self.folder, self._every_s, self._stops = folder, every_s, stops
        self.finished = folder.is_finished()
        # before the last checkpoint is read: no older attempt may go on
        self._writer = None if self.finished else Writer(folder, made_on)
        last = next(reversed(folder.history()), None)
        self._final = last.step if last else -1
        goes_on = last if last and last.has_state() else None
        self.last_step = goes_on.step if goes_on else 0
        self.checkpoint = goes_on.saved() if goes_on else None
        self.summary: dict[str, Any] = {}
        self._step, self._seen, self._is_closed = self._final, dict[str, float](), True
        self._planned: int | None = None
        self._save: Save | None = None
        self._state: Callable[[], bytes] | None = None
        self._has_checkpoints = False
        self._is_final, self._made_s = True, time.monotonic()
        self._told: set[str] = set()

    @property
    def id(self) -> str:
        """Its own id, for `gliotrail runs` and `gliotrail trace`."""
        return str(self.folder.describe()["id"])

    def steps(self, number: int) -> Iterator[int]:
        """The steps after the last checkpoint up to `number`; the first is 1."""
        self._planned = number
        if not self.finished:
            yield from range(self.last_step + 1, number + 1)

    def report(
        self,
        step: int,
        metrics: Mapping[str, Any],
        checkpoint: Save | None = None,
        *,
        state: Callable[[], bytes] | None = None,
        now: bool = False,
        time_ms: int | None = None,
    ) -> None:
        """Record numbers of a step. Several reports of a step are one; steps never go back.

        Args:
            metrics: anything that `float` takes, by any names.
            checkpoint: saves all that the next step depends on, if a checkpoint is due: after
                `every_s`, at the last of `steps`, and if the run is asked to stop. A report with a
                checkpoint is the last of its step.
            state: the same as bytes, which are stored while the next steps run.
            now: make the checkpoint in any case.
            time_ms: when the numbers were taken, since 1970; by default now.

        Raises:
            TrackingError: not a number; a second value of a key at a step; a step that has ended;
                a newer attempt has taken the run.
            Stopped: the run was asked to stop; the checkpoint was made.
            OSError: this machine's disk is full or fails.
        """
        ends = checkpoint is not None or state is not None
        if self._writer is not None and step > self._final:
            self._note(self._writer, step, metrics, time_ms)
            if ends:
                self._is_closed = self._has_checkpoints = True
                self._save, self._state = checkpoint, state
                if now or step == self._planned or self._is_due() or self._is_asked():
                    self._begin_checkpoint()
        if self._writer is not None and (ends or not self._has_checkpoints) and self._is_asked():
            self._writer.finish_checkpoint()
            stop_if_asked(self.folder)

    def _is_asked(self) -> bool:
        return self._stops and asked_by(self.folder) is not None

    def _is_due(self) -> bool:
        return time.monotonic() - self._made_s > self._every_s

    def _note(
        self, writer: Writer, step: int, metrics: Mapping[str, Any], time_ms: int | None
    ) -> None:
        if step < self._step or (step == self._step and self._is_closed):
            do = "a report with a checkpoint is the last of its step, and steps never go back"
            wanted = f"a step after {self._step}"
            raise TrackingError("report", wanted=wanted, got=f"step {step}", do=do)
        seen = self._seen if step == self._step else {}
        new: dict[str, float] = {}
        for key, value in metrics.items():
            number = _number(key, value, step)
            before = seen.get(key, new.get(key))
            if before is None:
                new[key] = number
            elif before != number and not (math.isnan(before) and math.isnan(number)):
                got = f"{before!r}, then {number!r}"
                raise TrackingError(key, where=f"step {step}", wanted="one value", got=got)
        writer.write(step, new, time_ms)
        self._step, self._seen, self._is_closed = step, seen | new, False
        self._is_final = False
        for key, number in new.items():
            if not math.isfinite(number) and key not in self._told:
                self._told.add(key)
                say(f"{key} is {number} at step {step}")

    def _begin_checkpoint(self) -> None:
        assert self._writer is not None
        self._writer.begin_checkpoint(self._step, self._state and self._state(), self._save)
        self._is_final, self._made_s = True, time.monotonic()

    def adopt(self, upto: int | None = None) -> None:
        """Take over points of earlier attempts after the last checkpoint, with their times.

        For loops that resume from a state of their own: the steps that led to it did happen.

        Args:
            upto: the step of that state; for each step, the newest attempt that recorded it
                counts. None takes all of the newest attempt.
        """
        if self._writer is None:
            return
        found: dict[int, list[Point]] = {}
        for path in sorted(self.folder.root.glob("attempts/*.jsonl"), reverse=True)[1:]:
            new: dict[int, list[Point]] = {}
            for point in parse_lines(path.read_bytes()):
                if self._final < point.step <= (point.step if upto is None else upto):
                    new.setdefault(point.step, []).append(point)
            found = new | found
            if upto is None:
                break
        for step, points in sorted(found.items()):
            self._writer.adopt(b"".join(map(to_line, points)))
            self._step, self._seen = step, {point.key: point.value for point in points}
            self._is_closed = self._is_final = False

    def make_final(self) -> None:
        """Make all reports final, and wait for it: an open step ends.

        Raises:
            OSError, TrackingError: as `report`.
        """
        if self._writer is None:
            return
        if not self._is_final:
            self._is_closed = True
            self._begin_checkpoint()
        self._writer.finish_checkpoint()

    def attach(self, name: str, content: bytes | str | Path) -> None:
        """Add a file to the run, or replace it; MLflow has it with the next checkpoint.

        Args:
            name: such as `confusion.png` or `tables/cases.csv`.
            content: its bytes, its text, or a file to copy.

        Raises:
            TrackingError: a name that leads elsewhere.
        """
        parts = PurePosixPath(name).parts
        if not parts or not all(map(_PLAIN.fullmatch, parts)):
            raise TrackingError("attach", wanted="a name such as tables/cases.csv", got=repr(name))
        if isinstance(content, Path):
            content = content.read_bytes()
        if not self.finished:
            self.folder.attach(name, content.encode() if isinstance(content, str) else content)

    def picture(self, name: str, png: bytes) -> None:
        """Add a PNG to the coming checkpoint: MLflow shows it beside its step, with a slider.

        Raises:
            TrackingError: no plain name.
        """
        if not _PLAIN.fullmatch(name):
            raise TrackingError("picture", wanted="a plain name such as samples", got=repr(name))
        if self._writer is not None:
            self._writer.attach(f"{name.removesuffix('.png')}.png", png)

    def tag(self, key: str, value: object) -> None:
        """Set a tag, or change it; MLflow has it with the next checkpoint."""
        if not self.finished:
            self.folder.tag(key, str(value))

    def finish(self) -> None:
        """The loop came to its end: everything becomes final, and the run is FINISHED.

        Raises:
            OSError, TrackingError: as `report`.
        """
        if self._writer is None:
            return
        self.make_final()
        self.folder.end("FINISHED", "the loop came to its end", self.summary)

    def close(self) -> None:
        """Close the journal.

        Raises:
            OSError, TrackingError: as `report`.
        """
        if self._writer is not None:
            self._writer.close()


def _number(key: str, value: Any, step: int) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        where, got = f"step {step}", repr(value)
        raise TrackingError(key, where=where, wanted="a number", got=got) from None
