"""The owner of a run: the one process that may write it, and whether it is still alive.

On its own machine, boot, process number and start time identify a process uniquely. Other machines
see only its heartbeat, a growing counter: see `Watch`.
"""

import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

from gliotrail.errors import ParamsError, TrackingError
from gliotrail.files import locked, read_json, write_json
from gliotrail.progress import say
from gliotrail.runs.journal import RunFolder

HEARTBEAT: Final = "GLIOTRAIL_HEARTBEAT_S"
_DEFAULT_S: Final = 30.0
_INTERVALS: Final = 3
_OWNER, _BEAT, _LOCK = "owner.json", "beat", "owner.lock"
_BEAT_BYTES: Final = 40
_HELD: Final[dict[Path, RunFolder]] = {}


@dataclass(frozen=True)
class Owner:
    """A process.

    machine: boot and process namespace; empty where they can't be known.
    started: in ticks since the boot.
    """

    machine: str
    host: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def machine() -> str:
    """This boot of this machine, and the namespace of its process numbers (Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - no path, a name
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None if it is gone.

    0 if it is hidden: another user's process, with /proc mounted with hidepid.
    """
    try:
        # the second field is the command, in brackets, with any characters in it
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    return None if fields[0] in "ZX" else int(fields[19])


def process(pid: int) -> Owner:
    """A process of this machine."""
    return Owner(machine(), socket.gethostname(), pid, _started(pid) or 0)


def this_process() -> Owner:
    """This process."""
    return process(os.getpid())


def is_alive(owner: Owner) -> bool | None:
    """Whether a process still runs; None if it is on another machine or boot, or hidden."""
    if not owner.machine or owner.machine != machine():
        return None
    started = _started(owner.pid)
    return None if started == 0 else started == owner.started


def owner_of(run: RunFolder) -> Owner | None:
    """The process that holds a run, or held it when it was killed; None after it was released."""
    said = read_json(run.root / _OWNER)
    return said and Owner(**said)


def claim(
    run: RunFolder,
    wait: Callable[[float], object] = time.sleep,
    gone: set[Owner] | None = None,
) -> None:
    """Take a run for this process.

    A holder on another machine counts as dead only after its heartbeat stood still for three of its
    intervals while it was watched.

    Args:
        gone: holders already known to be dead; new ones are added.

    Raises:
        TrackingError: another living process holds it.
    """
    holder, mine, watch, said = owner_of(run), this_process(), Watch(), False
    gone = set() if gone is None else gone
    while holder not in (None, mine) and holder not in gone and is_alive(holder) is None:
        beat = beat_of(run)
        if watch.is_still(str(holder), beat):
            if run.ended() is None:  # a run that ended has no heartbeat
                gone.add(holder)
            break
        if watch.has_moved(str(holder)):
            raise _held(run, holder)
        if not said:
            up_to = f"up to {_INTERVALS * interval_of(beat):g} s"
            say(f"{run.root.name} was held by {holder}: waiting {up_to} for its heartbeat")
            said = True
        wait(interval_of(beat) / 4)
        holder = owner_of(run)
    with locked(run.root / _LOCK):
        now = owner_of(run)
        if now not in (None, mine) and (now != holder or is_alive(now)):
            raise _held(run, now)
        write_json(run.root / _OWNER, asdict(mine), durably=True)
    _HELD[run.root] = run


def _held(run: RunFolder, holder: Owner) -> TrackingError:
    do = "wait until it ends, or end it"
    return TrackingError(f"this run is held by {holder}", where=run.root, do=do)


def release(run: RunFolder) -> None:
    """Release a run, if this process holds it."""
    _HELD.pop(run.root, None)
    with locked(run.root / _LOCK):
        if owner_of(run) == this_process():
            (run.root / _OWNER).unlink()


def held() -> list[RunFolder]:
    """The runs that this process holds."""
    return list(_HELD.values())


def close_if(run: RunFolder, holder: Owner, why: str) -> bool:
    """End a run as KILLED at its last sign of life, unless it has ended or changed its holder."""
    with locked(run.root / _LOCK):
        if run.ended() is not None or owner_of(run) != holder:
            return False
        signs = [run.root / "run.json", run.root / _BEAT, *run.root.glob("attempts/*.jsonl")]
        last_s = max(path.stat().st_mtime for path in signs if path.is_file())
        run.end("KILLED", f"{why}: {holder}", time_ms=int(1000 * last_s))
        (run.root / _OWNER).unlink()
        return True


def heartbeat_s() -> float:
    """GLIOTRAIL_HEARTBEAT_S, by default 30.

    Raises:
        ParamsError: it is not a number of seconds from 0.1 to 3600.
    """
    text = os.environ.get(HEARTBEAT) or str(_DEFAULT_S)
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 0.1 <= float(text) <= 3600:
        raise ParamsError(HEARTBEAT, wanted="seconds from 0.1 to 3600", got=repr(text))
    return float(text)


def beat_of(run: RunFolder) -> str:
    """A run's heartbeat, such as `17 every 30 s`; empty before the first."""
    path = run.root / _BEAT
    found = re.match(rb"\d+ every [\d.]+ s", path.read_bytes()) if path.is_file() else None
    return found[0].decode() if found else ""


def beat(run: RunFolder) -> str:
    """Beat once more. Each beat differs from all earlier ones, of any process.

    It overwrites the earlier beat in the same file, which works on a full disk, too.
    """
    count = int(beat_of(run).partition(" ")[0] or 0) + 1
    text = f"{count} every {heartbeat_s():g} s"
    file = os.open(run.root / _BEAT, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(file, text.ljust(_BEAT_BYTES).encode(), 0)
    finally:
        os.close(file)
    return text


def interval_of(beat: str) -> float:
    """The seconds between two heartbeats, as the heartbeat itself says."""
    return max((float(s) for s in re.findall(r"every ([\d.]+) s", beat)), default=_DEFAULT_S)


class Watch:
    """Watches heartbeats of other machines by this machine's clock, as no two clocks agree.

    Only watched time counts: a longer pause between two looks counts as one interval.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._seen: dict[str, tuple[str, float, float]] = {}
        self._moved: set[str] = set()

    def is_still(self, name: str, beat: str) -> bool:
        """Whether the heartbeat stood still for three of its intervals, including this look."""
        now_s = self._clock_s()
        before, at_s, still_s = self._seen.get(name, (None, now_s, 0.0))
        if before not in (None, beat):
            self._moved.add(name)
        still_s = still_s + min(now_s - at_s, interval_of(beat)) if before == beat else 0.0
        self._seen[name] = beat, now_s, still_s
        return still_s >= _INTERVALS * interval_of(beat)

    def has_moved(self, name: str) -> bool:
        """Whether the heartbeat grew while it was watched."""
        return name in self._moved

    def forget(self) -> None:
        """Start again, after a time without a view of the heartbeats."""
        self._seen.clear()
