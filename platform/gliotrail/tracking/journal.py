"""What a run did, kept so that whatever process is killed, the truth can be told from it.

A run's folder:

    run.json                     what the run is (name, params, tags); written once, first
    attempts/0001.jsonl          the live journal of each attempt: a line a point, checksummed
    checkpoints/0000000120-0001/ step and attempt
        state.safetensors        all that the next step depends on
        segment.jsonl            the points since the checkpoint before
        *.png                    pictures
        manifest.json            the checksums of all that, and the name of the checkpoint before;
                                 written last: with it the checkpoint is final, without it nothing
    ended.json                   how the run ended: FINISHED, FAILED or KILLED, and why
    artifacts/                   files that were there from the start

The surviving history is the chain of final checkpoints back from the newest one of the newest
attempt. Only its points are ever delivered, each with the time it was first written down, which
makes delivering twice the same as delivering once.
"""

import hashlib
import json
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gliotrail.errors import TrackingError
from gliotrail.files import write_durably

MODEL_FILE: Final = "model.safetensors"
"""The weights a finished run ended with, in its folder and in the stage's output."""


@dataclass(frozen=True)
class Point:
    """One number of a run. `time_ms` since 1970, fixed when it was first written down."""

    key: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True)
class Checkpoint:
    """A final checkpoint."""

    folder: Path
    step: int
    previous: str | None
    files: tuple[str, ...]

    def points(self) -> list[Point]:
        """The points since the checkpoint before."""
        return read_points(self.folder / "segment.jsonl")

    def pictures(self) -> list[Path]:
        """Drawn at this step."""
        return [self.folder / name for name in self.files if name.endswith(".png")]


def to_line(point: Point) -> bytes:
    """A journal's line: checksum, then JSON."""
    text = json.dumps([point.key, point.value, point.step, point.time_ms]).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_points(path: Path) -> list[Point]:
    """A journal's points, up to the first line that is torn or damaged."""
    points = []
    for line in path.read_bytes().splitlines(keepends=True):
        checksum, _, text = line.partition(b" ")
        if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text.rstrip(b"\n")):
            break
        points.append(Point(*json.loads(text)))
    return points


class RunFolder:
    """A run's folder, for one who writes and many who read."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def begin(self, description: Mapping[str, Any]) -> bool:
        """Write down what the run is, unless an earlier attempt did; says whether it was new."""
        new = not (self.root / "run.json").exists()
        if new:
            write_durably(self.root / "run.json", _json(description))
        return new

    def describe(self) -> dict[str, Any]:
        """What the run is.

        Raises:
            TrackingError: there is no such run.
        """
        path = self.root / "run.json"
        if not path.is_file():
            raise TrackingError("no run", where=self.root, wanted="a folder with a run.json")
        return dict(json.loads(path.read_text()))

    def history(self) -> list[Checkpoint]:
        """The surviving chain of final checkpoints, oldest first."""
        final = {c.folder.name: c for c in self._final()}
        newest = max(final, key=lambda name: name.split("-")[::-1], default=None)
        chain: list[Checkpoint] = []
        while newest is not None:
            chain.append(final[newest])
            newest = chain[-1].previous
        return chain[::-1]

    def end(self, status: str, reason: str, summary: Mapping[str, Any] | None = None) -> None:
        """The run ended: FINISHED at its plan's end, FAILED or KILLED before it."""
        now_ms = time.time_ns() // 1_000_000
        ended = {"status": status, "reason": reason, "time_ms": now_ms, "summary": summary or {}}
        write_durably(self.root / "ended.json", _json(ended))

    def reopen(self) -> None:
        """A run that FAILED or was KILLED goes on."""
        (self.root / "ended.json").unlink(missing_ok=True)

    def ended(self) -> dict[str, Any] | None:
        """How the run ended; None while it goes on."""
        path = self.root / "ended.json"
        return dict(json.loads(path.read_text())) if path.is_file() else None

    def _final(self) -> Iterator[Checkpoint]:
        for path in sorted(self.root.glob("checkpoints/*/manifest.json")):
            manifest = json.loads(path.read_text())
            yield Checkpoint(
                path.parent, manifest["step"], manifest["previous"], tuple(manifest["sha256"])
            )


class Writer:
    """One attempt's hand: points go to its journal at once, to a checkpoint when there is one."""

    def __init__(self, run: RunFolder) -> None:
        history = run.history()
        self._run, self._last = run, history[-1] if history else None
        self.attempt = _new_attempt(run.root)
        journal = run.root / "attempts" / f"{self.attempt:04d}.jsonl"
        self._journal = journal.open("ab", buffering=0)
        self._segment: list[bytes] = []
        self._files: dict[str, bytes] = {}

    @property
    def resumed_from(self) -> Checkpoint | None:
        """The checkpoint this attempt goes on from."""
        return self._last

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note points, each with the time it has from now on."""
        now_ms = time.time_ns() // 1_000_000
        lines = [to_line(Point(key, float(v), step, now_ms)) for key, v in metrics.items()]
        self._journal.write(b"".join(lines))
        self._segment += lines

    def attach(self, name: str, content: bytes) -> None:
        """Add a file to the coming checkpoint."""
        self._files[name] = content

    def checkpoint(self, step: int, state: bytes) -> Checkpoint:
        """Make all since the last checkpoint final: the files first, the manifest last."""
        folder = self._run.root / "checkpoints" / f"{step:010d}-{self.attempt:04d}"
        files = {
            "state.safetensors": state,
            "segment.jsonl": b"".join(self._segment),
            **self._files,
        }
        for name, content in files.items():
            write_durably(folder / name, content)
        previous = self._last.folder.name if self._last else None
        manifest = {
            "step": step,
            "previous": previous,
            "sha256": {
                name: hashlib.sha256(content).hexdigest() for name, content in files.items()
            },
        }
        write_durably(folder / "manifest.json", _json(manifest))
        self._forget_state_before(self._last)
        self._last = Checkpoint(folder, step, previous, tuple(files))
        self._segment, self._files = [], {}
        return self._last

    def _forget_state_before(self, checkpoint: Checkpoint | None) -> None:
        """Keep the states of the newest two checkpoints only; segments and pictures stay."""
        if checkpoint is not None and checkpoint.previous is not None:
            folder = self._run.root / "checkpoints" / checkpoint.previous
            (folder / "state.safetensors").unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the journal."""
        self._journal.close()


def read_verified(checkpoint: Checkpoint, name: str) -> bytes:
    """A checkpoint's file, its checksum compared.

    Raises:
        TrackingError: the file is not what was written.
    """
    content = (checkpoint.folder / name).read_bytes()
    wanted = json.loads((checkpoint.folder / "manifest.json").read_text())["sha256"][name]
    got = hashlib.sha256(content).hexdigest()
    if got != wanted:
        raise TrackingError("sha256", where=checkpoint.folder / name, wanted=wanted, got=got)
    return content


def _new_attempt(root: Path) -> int:
    """The next attempt's number, taken by creating its journal."""
    attempts = root / "attempts"
    attempts.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.stem) for p in attempts.glob("*.jsonl")), default=0)
    while True:
        try:
            (attempts / f"{number:04d}.jsonl").touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return number


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True, default=str).encode() + b"\n"
