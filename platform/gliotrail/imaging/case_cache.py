"""What a stage made of one case, kept, so that the next run makes only what is new.

DVC removes a stage's outputs before it runs the stage. So each case's files are kept elsewhere too,
as hard links, under a hash of all that they are made from: the case's raw files, settings, and the
code. Where DVC puts a copy into its cache and links the outputs to that, what is kept is a second
copy; only what the newest run used is kept. Where links can't be made (another disk) nothing is.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import psutil

from gliotrail.code_graph import code_hash, imported_by
from gliotrail.files import replacing, write_json

_RECORD: Final = "record.json"


def key_of(module: str, *parts: Any) -> str:
    """A hash of plain values and of the code that makes something of them.

    Args:
        module: the dotted name of the one that does; what it imports counts as well.
    """
    return hashlib.sha256(json.dumps([_code(module), *parts], sort_keys=True).encode()).hexdigest()


@cache
def _code(module: str) -> str:
    return code_hash(imported_by(module).values())


def made(
    memory: Path | None, key: str, files: Sequence[Path], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Have `files`: those that were kept under this key and are unchanged, else new ones.

    Args:
        memory: where they are kept; nowhere if None.
        key: of all that they are made from.
        files: in folders that are there.
        make: writes the files and returns plain values, which are kept too.

    Returns:
        what `make` returned, now or then.
    """
    if (values := linked(memory, key, files)) is not None:
        return values
    values = make()
    if memory is None:
        return values
    kept = memory / key
    with suppress(OSError), replacing(kept) as partial:
        partial.mkdir()
        for path in files:
            os.link(path, partial / path.name)
        times = {path.name: path.stat().st_mtime_ns for path in files}
        write_json(partial / _RECORD, {"mtime_ns": times, "values": values})
    return values


def linked(memory: Path | None, key: str, files: Sequence[Path]) -> dict[str, Any] | None:
    """The values that are kept, files linked; None where one is not there or was changed."""
    if memory is None:
        return None
    kept = memory / key
    try:
        record = json.loads((kept / _RECORD).read_text(encoding="utf-8"))
        now = {path.name: (kept / path.name).stat().st_mtime_ns for path in files}
        if record["mtime_ns"] != now:
            return None
        for path in files:
            os.link(kept / path.name, path)
        values: dict[str, Any] = record["values"]
    except (OSError, ValueError, KeyError):
        for path in files:
            path.unlink(missing_ok=True)
        return None
    return values


def forget_others(memory: Path | None, keys: Iterable[str]) -> None:
    """Remove what is kept under other keys."""
    used = set(keys)
    for folder in memory.iterdir() if memory and memory.is_dir() else ():
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def at_a_time(cases: int, peak_bytes: int) -> int:
    """How many cases of so much memory to work on at once: as many as there are cores, or fit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = psutil.virtual_memory().available // peak_bytes
    return max(1, min(cases, cores or 1, fitting))
