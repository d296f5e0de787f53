"""Writing so that a reader never sees half a file, and an earlier output outlives a failure."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NUMPYS_FULL_DISK = re.compile(r"^\d+ requested and \d+ written$")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A free name beside `path` to write a file or a folder to; renamed to `path` at the end.

    On any error what was written is removed and what was at `path` before stays as it was.

    Raises:
        OSError: the disk is full, or may not be written to; it names a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "old.partial"))
    # left by a process that was killed, perhaps between the two renames below
    _remove(partial)
    if old.exists() and not path.exists():
        old.rename(path)
    _remove(old)
    try:
        yield partial
        if path.is_dir() and not path.is_symlink():  # a folder can't be renamed onto another
            path.rename(old)
            partial.rename(path)
            _remove(old)
        else:
            partial.replace(path)
    except OSError as error:
        if error.errno is None and _NUMPYS_FULL_DISK.search(str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        if error.errno is not None and error.filename is None:  # of a write
            error.filename = str(path)
        raise
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with sorted keys: equal values are equal bytes. NaN is refused."""
    with replacing(path) as partial:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def csv_bytes(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table as CSV, its lines ended as git's are. What a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table in CSV; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and see it onto the disk: after power loss it is whole or not there at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes of this machine; the kernel lets go of a dead one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
