"""A run's record on disk, complete up to the last checkpoint whichever process is killed.

A run's folder:

    artifacts/                   files of the whole run: some from its start, some from its end
    run.json                     what the run is (name, params, tags); with it the run has begun
    attempts/0001.jsonl          the live journal of each attempt: a line a point, checksummed
    checkpoints/0000000120-0001/ step and attempt
        state.safetensors        all that the next step depends on; in the newest two only
        saved/                   the same, saved by a loop of your own (`gliotrail.track`)
        segment.jsonl            the points since the checkpoint before
        *.png                    pictures
        manifest.json            the checksums of all that, and the name of the checkpoint before;
                                 written last: only with it the checkpoint is final
    tags.json                    tags that were set since, if any were
    ended.json                   how the run ended: FINISHED, FAILED or KILLED, and why
    traceback.txt                of the error, if it FAILED
    owner.json, beat             the process that holds the run, and its heartbeat: see `owner`
    delivered/*.json             what a tracking server has: see `delivery`

The surviving history is the chain of final checkpoints back from the newest one. Once a newer
attempt has begun, an older one that still runs can make no checkpoint final. Only the history's
points are delivered, each with the time of its first recording, so that delivering twice is the
same as delivering once.
"""

import hashlib
import json
import sys
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from gliotrail.errors import TrackingError
from gliotrail.files import locked, read_json, sha256, write_durably, write_json

MODEL_FILE: Final = "model.safetensors"
"""The weights a finished run ended with, in its folder and in the stage's output."""
RUN_FILE: Final = "run.json"
"""A run's description, in its folder; in the stage's output also how it ended."""
JOURNAL_FILE: Final = "journal.jsonl"
"""The points of the whole history, in the stage's output."""
LOSS_PICTURE: Final = "soft_dice_loss.png"
"""Training and validation curves, small enough for a run's description."""
TRACEBACK_FILE: Final = "traceback.txt"
"""The traceback of the error that a run FAILED with last."""
LOCK: Final = "attempts.lock"
STATE_FILE: Final = "state.safetensors"
SEGMENT_FILE: Final = "segment.jsonl"
SAVED: Final = "saved"
"""The folder of a checkpoint that a loop of your own saves into."""
_ENDED: Final = "ended.json"
_TAGS: Final = "tags.json"
_MANIFESTS: Final = "checkpoints/*/manifest.json"


@dataclass(frozen=True)
class Point:
    """One number of a run. `time_ms` since 1970 is that of its first recording."""

    key: str
    value: float
    step: int
    time_ms: int


def to_line(point: Point) -> bytes:
    """A journal's line: checksum, then JSON."""
    text = json.dumps([point.key, point.value, point.step, point.time_ms]).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse_lines(content: bytes) -> list[Point]:
    """A journal's points, up to the first line that is torn or damaged."""
    points = []
    for line in content.splitlines(keepends=True):
        checksum, _, text = line.partition(b" ")
        if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
            break
        points.append(Point(*json.loads(text)))
    return points


@dataclass(frozen=True)
class Checkpoint:
    """A final checkpoint. `sha256` is of its files, by name.

    left_out: how many pictures were left out for lack of disk space.
    made_on: what its bits depend on besides the run's inputs, such as the kind of CPU.
    """

    folder: Path
    step: int
    previous: str | None
    sha256: Mapping[str, str]
    left_out: int = 0
    made_on: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str, do: str | None = None) -> bytes:
        """A file, its checksum compared; `do` is advice for the error.

        Raises:
            TrackingError: the file is gone, or differs from what was written.
        """
        path = self.folder / name
        content = path.read_bytes() if path.is_file() else b""
        wanted, got = self.sha256[name], hashlib.sha256(content).hexdigest()
        if got != wanted:
            got = got if path.is_file() else "no file"
            raise TrackingError("sha256", where=path, wanted=wanted, got=got, do=do)
        return content

    def state(self) -> bytes:
        """All that the next step depends on, of the newest checkpoint; raises as `read`."""
        return self.read(STATE_FILE, do=f"remove {self.folder} to go on from the checkpoint before")

    def segment(self) -> bytes:
        """The journal since the checkpoint before; raises as `read`."""
        return self.read(SEGMENT_FILE)

    def saved(self) -> Path | None:
        """The folder that a loop saved, checksums compared; None where there is none.

        Raises:
            TrackingError: as `state`.
        """
        names = [name for name in self.sha256 if name.startswith(f"{SAVED}/")]
        for name in names:
            wanted, path = self.sha256[name], self.folder / name
            got = sha256(path) if path.is_file() else "no file"
            if got != wanted:
                do = f"remove {self.folder} to go on from the checkpoint before"
                raise TrackingError("sha256", where=path, wanted=wanted, got=got, do=do)
        return self.folder / SAVED if names else None

    def has_state(self) -> bool:
        """Whether its state is still there: it may have been removed to make room."""
        names = (n for n in self.sha256 if n == STATE_FILE or n.startswith(f"{SAVED}/"))
        return all((self.folder / name).is_file() for name in names)

    def pictures(self) -> list[Path]:
        """The pictures of this step, unless they were removed to make room."""
        names = (name for name in self.sha256 if "/" not in name and name.endswith(".png"))
        paths = [self.folder / name for name in names]
        return [path for path in paths if path.is_file()]


class RunFolder:
    """A run's folder, for one writer and many readers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read_ns: int | None = None  # when RUN_FILE, found whole, was written

    def has_begun(self) -> bool:
        """Whether the run's description is written."""
        path = self.root / RUN_FILE
        written_ns = _written_ns(path)
        if written_ns != self._read_ns and read_json(path) is not None:
            self._read_ns = written_ns
        return written_ns is not None and written_ns == self._read_ns

    def begin(
        self, description: Mapping[str, Any], artifacts: Mapping[str, bytes] | None = None
    ) -> None:
        """Write the run's description and its first files; a second call changes nothing."""
        with locked(self.root / LOCK):
            if self.has_begun():
                return
            for name, content in (artifacts or {}).items():
                self.attach(name, content)
            write_durably(self.root / RUN_FILE, _json(description))

    def attach(self, name: str, content: bytes) -> None:
        """Add a file to the run, or replace it; before its end, which makes readers look."""
        write_durably(self.root / "artifacts" / name, content)

    def artifacts(self) -> dict[str, Path]:
        """The files of the whole run, by their names."""
        top = self.root / "artifacts"
        found = {path.relative_to(top).as_posix(): path for path in sorted(top.rglob("[!.]*"))}
        return {n: p for n, p in found.items() if p.is_file() and "/." not in f"/{n}"}

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run, or change it."""
        with locked(self.root / LOCK):
            write_json(self.root / _TAGS, self.tags() | {key: value}, durably=True)

    def tags(self) -> dict[str, str]:
        """The tags that were set since the run began."""
        return dict(read_json(self.root / _TAGS) or {})

    def seconds(self) -> float:
        """The time from the first to the last point of each attempt, summed."""
        total_ms = 0
        for path in self.root.glob("attempts/*.jsonl"):
            points = parse_lines(path.read_bytes())
            total_ms += points[-1].time_ms - points[0].time_ms if points else 0
        return total_ms / 1000

    def describe(self) -> dict[str, Any]:
        """The run's description; TrackingError if there is no such run."""
        if not self.has_begun():
            raise TrackingError("no run", where=self.root, wanted=f"a folder with a {RUN_FILE}")
        says = read_json(self.root / RUN_FILE) or {}
        return {"tags": {}, "params": {}, "datasets": [], **says}  # older versions wrote less

    def history(self) -> list[Checkpoint]:
        """The surviving chain of final checkpoints, oldest first.

        Raises:
            TrackingError: a manifest can't be read, or a checkpoint in the chain is gone.
        """
        manifests = {path.parent.name: path for path in self.root.glob(_MANIFESTS)}
        name = max(manifests, key=_attempt_and_step, default=None)
        chain: list[Checkpoint] = []
        while name is not None:
            if name not in manifests:
                raise TrackingError("no such checkpoint", where=self.root / "checkpoints" / name)
            chain.append(_read_manifest(manifests[name]))
            name = chain[-1].previous
        return chain[::-1]

    def points(self) -> list[Point]:
        """The points of the whole history.

        Raises:
            TrackingError: as `history`; a journal's segment is damaged.
        """
        return [point for c in self.history() for point in parse_lines(c.segment())]

    def states(self) -> list[Path]:
        """The files that training would resume from."""
        saved = (p for p in self.root.glob(f"checkpoints/*/{SAVED}/**/*") if p.is_file())
        return [*self.root.glob(f"checkpoints/*/{STATE_FILE}"), *saved]

    def drop_states(self) -> None:
        """Remove the files that training would resume from. Points and scores stay."""
        for path in self.states():
            path.unlink()

    def end(
        self,
        status: str,
        reason: str,
        summary: Mapping[str, Any] | None = None,
        time_ms: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        """The run ended: FINISHED at its plan's end, FAILED or KILLED before it.

        Args:
            summary: its results. Numbers with a metric's name, such as `trial/voxels`, are metrics
                in MLflow.
            time_ms: when, if not now.
            error: why it FAILED, by default the exception being handled; its traceback is kept.
        """
        error = error or sys.exc_info()[1]
        if status == "FAILED" and error:
            text = "".join(traceback.format_exception(error))
            write_durably(self.root / TRACEBACK_FILE, text.encode())
        time_ms = now_ms() if time_ms is None else time_ms
        ended = {"status": status, "reason": reason, "time_ms": time_ms, "summary": summary or {}}
        write_durably(self.root / _ENDED, _json(ended))

    def reopen(self) -> None:
        """A run that FAILED or was KILLED goes on."""
        (self.root / _ENDED).unlink(missing_ok=True)

    def ended(self) -> dict[str, Any] | None:
        """How the run ended; None while it goes on."""
        ended = read_json(self.root / _ENDED)
        return ended and {"reason": "", "summary": {}, **ended}

    def ended_ns(self) -> int | None:
        """When the run's end was written, in ns; None while it goes on."""
        return _written_ns(self.root / _ENDED)

    def is_finished(self) -> bool:
        """Whether the run came to its plan's end."""
        return (self.ended() or {}).get("status") == "FINISHED"


def resume_tags(history: Sequence[Checkpoint]) -> dict[str, str]:
    """Tags of a run that was resumed with another `made_on`: its bits may differ from then on.

    `resume.exact` is `false` then, and `resume.changed` has the steps and the changes.
    """
    changed = "; ".join(
        f"{key} {old}, from step {before.step} on {value}"
        for before, after in pairwise(history)
        for key, value in after.made_on.items()
        if (old := before.made_on.get(key, value)) != value
    )
    return {"resume.exact": "false", "resume.changed": changed} if changed else {}


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _written_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _attempt_and_step(name: str) -> tuple[int, int]:
    step, _, attempt = name.partition("-")
    return int(attempt), int(step)


def _read_manifest(path: Path) -> Checkpoint:
    try:
        manifest = json.loads(path.read_bytes())
        step, previous, sha256 = (manifest[key] for key in ("step", "previous", "sha256"))
        more = {key: manifest[key] for key in ("left_out", "made_on") if key in manifest}
        return Checkpoint(path.parent, step, previous, sha256, **more)
    except (ValueError, KeyError, TypeError):
        do = f"remove {path.parent}, if it is the newest"
        raise TrackingError("damaged manifest", where=path, do=do) from None


def newest_attempt(root: Path) -> int:
    """The newest attempt's number; 0 before the first."""
    return max((int(path.stem) for path in root.glob("attempts/*.jsonl")), default=0)


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"
