"""A cache of what a stage made for each case, so that the next run makes only what is new.

DVC removes a stage's outputs before it runs the stage. So each case's files are also kept
elsewhere, as hard links, under a hash of everything they are made from: the case's raw files,
settings and code. If DVC copies outputs into its cache and links them to that, the kept files are a
second copy. Only what the newest run used is kept. If links can't be made (another disk), nothing
is kept.
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
    """A hash of plain values and of the code that processes them.

    Args:
        module: the dotted name of that code; what it imports counts as well.
    """
    return hashlib.sha256(json.dumps([_code(module), *parts], sort_keys=True).encode()).hexdigest()


@cache
def _code(module: str) -> str:
    return code_hash(imported_by(module).values())


def made(
    memory: Path | None, key: str, files: Sequence[Path], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Provide `files`: the unchanged ones kept under this key, or new ones.

    Args:
        memory: the folder of kept files; None keeps nothing.
        key: hash of everything they are made from.
        files: their paths, in existing folders.
        make: writes the files and returns plain values, which are kept as well.

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
    """The kept values, with the files linked; None if one is missing or was changed."""
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
    """Remove everything kept under other keys."""
    used = set(keys)
    for folder in memory.iterdir() if memory and memory.is_dir() else ():
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def at_a_time(cases: int, peak_bytes: int) -> int:
    """How many cases to work on at once: one per core, or as many as fit into memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = psutil.virtual_memory().available // peak_bytes
    return max(1, min(cases, cores or 1, fitting))
