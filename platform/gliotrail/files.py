"""Write files so that a reader never sees half of one, and a failure leaves the earlier one."""

import csv
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar

from gliotrail.errors import DataError
from gliotrail.progress import say

_NUMPYS_FULL_DISK: Final = re.compile(r"^\d+ requested and \d+ written$")
_OLD, _HEX = ".old", "[0-9a-f]"
T = TypeVar("T")
_IN_THE_WAY: Final = (errno.ENOTEMPTY, errno.EEXIST)
_OTHER_KIND: Final = (errno.EISDIR, errno.ENOTDIR)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a free name beside `path` to write a file or folder to; rename it to `path` at the end.

    On any error the new file is removed and the old one stays as it was. Several writers may write
    the same `path` at once, in threads, processes or on hosts that share the disk: each writes
    beside the others, and the last one wins.

    Raises:
        OSError: the disk is full or read-only, or a file would replace a folder or a folder a file.
            The error names a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    own, lock = _own_folder(path)
    partial = own / path.name
    try:
        yield partial
        _put(partial, path)
    except OSError as error:
        if error.errno is None and _NUMPYS_FULL_DISK.search(str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        if error.errno is not None and error.filename is None:  # of a write
            error.filename = str(path)
        raise
    finally:
        _give_back(own, path)
        shutil.rmtree(own, ignore_errors=True)
        os.close(lock)


def check_free(folder: Path) -> None:
    """Look whether a folder that a person names can be made: nothing of theirs is replaced.

    Raises:
        DataError: something is there, other than an empty folder.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError("folder", where=folder, wanted="a new one", got="something that is there")


def _own_folder(path: Path) -> tuple[Path, int]:
    """A new folder beside `path`, and the descriptor that locks it while its writer lives."""
    while True:
        own = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        own.mkdir()
        try:
            lock = os.open(own, os.O_RDONLY)
        except FileNotFoundError:  # another writer cleared it before it was locked
            continue
        with suppress(OSError):  # not every network's disk locks folders
            fcntl.flock(lock, fcntl.LOCK_EX)
        if own.exists():
            return own, lock
        os.close(lock)


def _put(partial: Path, path: Path) -> None:
    """Rename. A folder can't be renamed onto another one, so that one is moved aside first."""
    for n in count():
        try:
            partial.replace(path)
            return
        except OSError as error:
            if error.errno in _OTHER_KIND:
                raise OSError(error.errno, error.strerror, str(path)) from None
            if error.errno not in _IN_THE_WAY:
                raise
        with suppress(FileNotFoundError):  # another writer took it out of the way
            path.rename(partial.with_name(f"{_OLD}{n}"))


def _clear(path: Path) -> None:
    """Remove what killed writers of `path` left, even those killed between the two renames."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{_HEX * 8}.partial"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where one lives
                _give_back(left, path)
                _remove(left)
            finally:
                os.close(descriptor)


def _give_back(own: Path, path: Path) -> None:
    """Put back what was moved aside, if nothing has taken its place."""
    for old in sorted(own.glob(f"{_OLD}*"))[-1:]:
        if not path.exists():
            with suppress(OSError):  # another writer was quicker
                old.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any, durably: bool = False) -> None:
    """Indented JSON with sorted keys: equal values are equal bytes. NaN is refused.

    Args:
        durably: as `write_durably`: for what a later decision depends on.
    """
    content = (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    if durably:
        write_durably(path, content)
        return
    with replacing(path) as partial:
        partial.write_bytes(content)


def csv_bytes(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table as CSV with line feeds. A missing value is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV table; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def parsed_rows(path: Path, parse: Callable[[Mapping[str, str]], T]) -> Iterator[T]:
    """The rows of a log of ours, up to the first spoilt one, with a message."""
    for n, row in enumerate(csv_rows(path), 1):
        try:
            made = parse(row)
        except (ValueError, KeyError, TypeError):
            say(f"{path}: row {n} is spoilt; from there on it counts as never written")
            return
        yield made


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and sync it: after a power loss it is whole or not there at all."""
    new = [folder for folder in path.parents if not folder.exists()]
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    for folder in [path.parent, *(folder.parent for folder in new)]:
        _sync(folder)


def sync_below(folder: Path) -> list[Path]:
    """Sync all files below a folder to the disk; their paths. None if there is no folder."""
    paths = list(folder.rglob("*"))
    for path in [*paths, *([folder, folder.parent] if folder.is_dir() else [])]:
        _sync(path)
    return [path for path in paths if path.is_file()]


def _sync(folder: Path) -> None:
    """Sync a folder's entries, or a file, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any | None:
    """A file of ours; None if it is absent, or spoilt (empty or cut), with a message.

    A file that a full disk or power loss spoilt counts as never written, and is written anew.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return json.loads(content)
    except ValueError:
        say(f"{path}: spoilt ({len(content)} bytes that are no JSON); it counts as never written")
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes of this machine. The kernel releases it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
