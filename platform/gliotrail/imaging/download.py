"""Download a large file over HTTP with resume, and unpack its archive safely.

pooch starts again from nothing, and so does fsspec's `get_file`; requests with a Range does not.
"""

import hashlib
import shutil
import tarfile
import time
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import requests
import urllib3

from gliotrail.errors import DataError
from gliotrail.progress import progress

MB = 1_000_000
_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = (10, 60)  # to connect, and between two blocks
_MOST_MEMBERS = 100_000
_LONGEST_NAME, _LONGEST_PATH, _DEEPEST = 200, 1000, 16
_BUSY = {408, 425, 429, 500, 502, 503, 504}


def download(url: str, path: Path, md5: str, tries: int = 5, wait_s: float = 1.0) -> Path:
    """Download `url` to `path`, unless the file is there already and has the right md5.

    What has arrived stays in `PATH.part`, even if the process ends. The next call resumes there if
    the server understands Range, and starts again otherwise.

    Args:
        url: http or https.
        path: where the whole file is to be.
        md5: of the whole file, in hexadecimal.
        tries: attempts in a row without any progress before giving up.
        wait_s: before the second attempt; doubled each time.

    Raises:
        DataError: the server refuses, stays away, or sends other bytes; no room on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and _md5(path) == md5:
        return path
    part = path.with_name(f"{path.name}.part")
    failures, furthest = 0, _size(part)
    while True:
        try:
            _go_on(url, part)
            break
        except _BROKEN as error:
            failures = 1 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures >= tries:
                raise DataError(
                    f"download broke off {tries} times", where=url, got=_reason(error),
                    do=f"{furthest / MB:.1f} MB are kept; run again to go on",
                ) from None  # fmt: skip
            time.sleep(min(60.0, wait_s * 2 ** (failures - 1)))
        except requests.RequestException as error:
            raise DataError("download", where=url, got=_reason(error)) from None
    got = _md5(part)
    if got != md5:
        part.unlink()
        do = "the file was deleted; run again"
        raise DataError("md5 of the download", where=url, wanted=md5, got=got, do=do)
    part.replace(path)
    return path


class _InterruptedError(Exception):
    """An interruption that is worth another try."""


_BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    urllib3.exceptions.HTTPError,
    _InterruptedError,
)


def _go_on(url: str, part: Path) -> None:
    """One request: append to what is there. Returns when the file is whole."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
        if answer.status_code == 416:  # nothing after `start`: the file is whole, or too long
            if answer.headers.get("Content-Range", "").endswith(f"/{start}"):
                return
            part.unlink()
            raise _InterruptedError("the kept part is longer than the file")
        if answer.status_code in _BUSY:
            raise _InterruptedError(f"HTTP {answer.status_code} {answer.reason}")
        if answer.status_code not in {200, 206}:
            got = f"HTTP {answer.status_code} {answer.reason}"
            raise DataError("download", where=url, wanted="the file", got=got)
        goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if answer.status_code == 200 or not goes_on:
            start = 0
        total = start + int(answer.headers.get("Content-Length", 0))
        _check_room(part.parent, total - start)
        with (
            part.open("ab" if start else "wb") as stream,
            progress(total, "download", "bytes", done=start) as advance,
        ):
            while block := answer.raw.read1(_BLOCK_BYTES):  # what has arrived, so nothing is lost
                stream.write(block)
                advance(len(block))
    if total and _size(part) < total:
        raise _InterruptedError(f"{_size(part)} of {total} bytes")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar (not compressed) into a new `folder`.

    AppleDouble files (`._*`) and `.DS_Store` are left out. Raises before anything is written
    outside `folder`.

    Raises:
        DataError: not a tar or a truncated one; an absolute path, `..`, a name that is not plain
            ASCII or too long, a link, a device or a sparse file in it; two members of a name; more
            than 100,000 of them; no room on the disk.
    """
    n_bytes = archive.stat().st_size
    folder.mkdir(parents=True)
    _check_room(folder, n_bytes)
    try:
        with (
            tarfile.open(archive, "r:") as tar,
            progress(n_bytes, "unpack", "bytes") as advance,
        ):
            at = 0
            for number, member in enumerate(tar):
                if number == _MOST_MEMBERS:
                    wanted = f"at most {_MOST_MEMBERS}"
                    raise DataError("members", where=archive, wanted=wanted, got="more")
                _unpack_one(tar, member, folder, archive)
                advance(tar.offset - at)
                at = tar.offset
    except (FileExistsError, NotADirectoryError) as error:
        got = f"{Path(error.filename).name!r} as a file and as a folder"
        raise DataError("archive", where=archive, got=got) from None
    # what tarfile raises for headers with impossible numbers: sizes below 0 or of exabytes
    except (tarfile.TarError, EOFError, ValueError, MemoryError) as error:
        raise DataError("not a whole tar", where=archive, got=repr(error)) from None


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        got = repr(member.name)
        raise DataError("path in the archive", where=archive, wanted="one inside it", got=got)
    plain = member.name.isascii() and member.name.isprintable() and "\\" not in member.name
    short = len(member.name) <= _LONGEST_PATH and len(name.parts) <= _DEEPEST
    if not (plain and short and max(map(len, name.parts), default=0) <= _LONGEST_NAME):
        wanted = f"plain names of up to {_LONGEST_NAME} letters"
        raise DataError("path in the archive", where=archive, wanted=wanted, got=repr(member.name))
    if any(part.startswith("._") or part == ".DS_Store" for part in name.parts):
        return
    if member.isdir():
        (folder / name).mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if source is None:
        raise DataError(
            "archive", where=archive, wanted="files and folders only",
            got=f"{member.name!r}, a link, device or sparse file",
        )  # fmt: skip
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        stream: BinaryIO = target.open("xb")
    except FileExistsError:
        raise DataError("archive", where=archive, got=f"{member.name!r} twice") from None
    with source, stream:
        shutil.copyfileobj(source, stream, _BLOCK_BYTES)
        if stream.tell() != member.size:
            raise DataError("not a whole tar", where=archive, got=f"{member.name!r} cut off")


def _check_room(folder: Path, wanted_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted_bytes > free:
        wanted, got = f"{wanted_bytes / MB:.0f} MB", f"{free / MB:.0f} MB"
        raise DataError("room on the disk", where=folder, wanted=wanted, got=got)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__.strip('_')}: {error}"
