"""What a tracker kept of the loop of `compared_loop`: MLflow's database by SQL, W&B's own files."""

import json
import struct
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.database import Database
from tests.tracking.compared_loop import numbers


@dataclass(frozen=True)
class Kept:
    """Of all runs of a loop together; what is right is one run, FINISHED, and zeros."""

    lost: int
    doubled: int
    at_wrong_step: int
    statuses: list[str]

    @classmethod
    def of(cls, rows: list[tuple[str, int, float]], statuses: list[str], steps: int) -> "Kept":
        """Rows are key, step, value: each value belongs to one step alone."""
        wanted = {(key, v): s for s in range(1, steps + 1) for key, v in numbers(s).items()}
        counts = Counter((key, value) for key, _, value in rows)
        return cls(
            lost=len(wanted.keys() - counts.keys()),
            doubled=sum(n - 1 for n in counts.values()),
            at_wrong_step=sum(wanted.get((key, value)) != step for key, step, value in rows),
            statuses=sorted(statuses),
        )

    @property
    def told(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def in_mlflow(uri: str, experiment: str, steps: int, trial: int | None = None) -> Kept:
    """Of an experiment's runs, or of those with a param `trial`."""
    database = Database(uri)
    where = "r.experiment_id in (select experiment_id from experiments where name = :experiment)"
    if trial is not None:
        of_trial = "select run_uuid from params where key = 'trial' and value = :trial"
        where += f" and r.run_uuid in ({of_trial})"
    values = {"experiment": experiment} | ({} if trial is None else {"trial": str(trial)})
    points = database.ask(
        "select m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid "
        f"where m.key in ('loss', 'accuracy') and {where}",
        **values,
    )
    statuses = database.ask(f"select r.status from runs r where {where}", **values)
    return Kept.of([tuple(row) for row in points], [str(s) for (s,) in statuses], steps)


def in_wandb(folder: Path, steps: int) -> Kept:
    """What the files of W&B's offline runs hold, which `wandb sync` would send."""
    rows, statuses = [], []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        status = "no end"
        for content in _records(path.read_bytes()):
            from wandb.proto.wandb_internal_pb2 import Record

            record = Record.FromString(content)
            if record.WhichOneof("record_type") == "exit":
                status = "FINISHED" if record.exit.exit_code == 0 else "FAILED"
            found = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            step = record.history.step.num
            rows += [(key, step, found[key]) for key in ("loss", "accuracy") if key in found]
        statuses.append(status)
    return Kept.of(rows, statuses, steps)


def _records(content: bytes) -> list[bytes]:
    """Of a file in LevelDB's log format: blocks of 32 KiB; checksum, length and kind before each
    part of a record. What was cut off by a kill is left out."""
    at, block, parts, found = 7, 32768, b"", []  # behind W&B's own header
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part = content[at + 7 : at + 7 + length]
        if len(part) < length or not kind:
            break
        at += 7 + length
        parts = part if kind in {1, 2} else parts + part  # whole, first, middle, last
        if kind in {1, 4}:
            found.append(parts)
    return found
