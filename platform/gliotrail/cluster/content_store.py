"""Data by the hash of their content, in DVC's own layout, sent between machines.

A file is identified by its MD5, a folder by the MD5 of a list of its files, `<md5>.dir`. So a
worker on any machine gets exactly the stage's data, even if other data have the same name there.
"""

import fcntl
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from gliotrail.errors import DataError
from gliotrail.files import locked, replacing
from gliotrail.progress import progress
from gliotrail.runs.disk_budget import bytes_of, gigabytes
from gliotrail.runs.store import Store

LIMIT: Final = "GLIOTRAIL_CACHE_GB"
_DEFAULT_GB: Final = 200.0
_AT_A_TIME: Final = 8
_HELD: Final[dict[Path, TextIOWrapper]] = {}


def put(path: Path, store: Store) -> str:
    """Send a file or a folder to the store, like `dvc push`; only what the store lacks.

    Returns:
        the digest.

    Raises:
        DataError: there is no such file or folder.
        ClusterError: as the store has it.
    """
    digest, files, listed = _look_at(path)
    if listed is None:
        _send(files, store)
    elif not store.has(_name(digest)):  # the list is sent last: if it is there, all is
        _send(files, store)
        store.write(_name(digest), listed)
    return digest


def dvc_digest(path: Path) -> str:
    """The digest that `put` returns, without a store.

    Raises:
        DataError: there is no such file or folder.
    """
    return _look_at(path)[0]


def _look_at(path: Path) -> tuple[str, dict[str, Path], bytes | None]:
    """The digest of a file or a folder, its files by their digests, and a folder's list."""
    if path.is_file():
        digest = _md5(path)
        return digest, {digest: path}, None
    if not path.is_dir():
        raise DataError("no such file or folder", where=path)
    files = sorted(found for found in path.rglob("*") if found.is_file())
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        digests = list(threads.map(_md5, files))
    names = [file.relative_to(path).as_posix() for file in files]
    listed = sorted(
        ({"md5": md5, "relpath": name} for md5, name in zip(digests, names, strict=True)),
        key=lambda entry: entry["relpath"],
    )
    content = json.dumps(listed, sort_keys=True).encode()
    return f"{_md5_of(content)}.dir", dict(zip(digests, files, strict=True)), content


def _send(files: dict[str, Path], store: Store) -> None:
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        known = list(threads.map(lambda digest: store.has(_name(digest)), files))
        missing = [
            file for file, is_known in zip(files.items(), known, strict=True) if not is_known
        ]
        if not missing:
            return
        n_bytes = sum(path.stat().st_size for _, path in missing)
        with progress(n_bytes, "upload", "bytes") as done:
            sent = threads.map(lambda file: store.upload(file[1], _name(file[0])), missing)
            for (_, path), _ in zip(missing, sent, strict=True):
                done(path.stat().st_size)


def download(digest: str, store: Store, path: Path) -> None:
    """Download the file or folder of a digest; each file's hash is compared.

    Files from an interrupted download are not fetched again.

    Raises:
        DataError: the store lacks a part, or has another content under its name.
        ClusterError: as the store has it.
    """
    if not digest.endswith(".dir"):
        _fetch(digest, store, path)
        return
    content = store.read(_name(digest))
    if content is None or f"{_md5_of(content)}.dir" != digest:
        raise _not_there(digest, store)
    listed = {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
    for name in listed:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError("a name that leads out of its folder", where=digest, got=repr(name))
    path.mkdir(parents=True, exist_ok=True)
    with (
        ThreadPoolExecutor(_AT_A_TIME) as threads,
        progress(len(listed), f"fetch {digest[:8]}", "files") as done,
    ):
        fetched = threads.map(lambda item: _fetch(item[1], store, path / item[0]), listed.items())
        for _ in fetched:
            done(1)


def _fetch(md5: str, store: Store, path: Path) -> None:
    if path.is_file():  # it was whole when it was renamed to this name
        return
    with replacing(path) as partial:
        try:
            store.download(_name(md5), partial)
        except FileNotFoundError:
            raise _not_there(md5, store) from None
        got = _md5(partial)
        if got != md5:
            raise DataError("MD5", where=f"{store.url}/{_name(md5)}", wanted=md5, got=got)


def _not_there(digest: str, store: Store) -> DataError:
    do = "`dvc push` it where it was made"
    return DataError(f"no data of digest {digest}", where=store.url, do=do)


def fetch(digest: str, store: Store, cache: Path) -> Path:
    """Bring data into this machine's cache: the first process that needs them fetches them.

    They stay while this process lives. If the cache is larger than GLIOTRAIL_CACHE_GB, data that no
    process uses are removed, the longest unused first.

    Returns:
        the file or folder. All processes share it: map it, don't change it.

    Raises:
        DataError, ClusterError: as `download`.
        ParamsError: GLIOTRAIL_CACHE_GB is no number above 0.
    """
    place, limit_bytes = cache / digest, gigabytes(LIMIT, _DEFAULT_GB)
    while True:
        # held, shared, until this process ends; only clearing the cache takes it exclusively
        holder = _HELD.get(place) or _open(_lock_of(place))
        fcntl.flock(holder, fcntl.LOCK_SH)
        if place.exists():
            _HELD[place] = holder
            os.utime(_lock_of(place))
            return place
        holder.close()
        with locked(cache / f".{digest}.fetching"):
            if not place.exists():
                partial = cache / f".{digest}.partial"
                download(digest, store, partial)
                for file in [partial, *partial.rglob("*")]:
                    if file.is_file():
                        file.chmod(0o444)  # all processes share it
                partial.rename(place)
        _make_room(cache, limit_bytes, but=place)


def _make_room(cache: Path, limit_bytes: int, but: Path) -> None:
    places = [path for path in cache.iterdir() if not path.name.startswith(".")]
    sizes = {path: bytes_of(path) if path.is_dir() else path.stat().st_size for path in places}
    total = sum(sizes.values())
    for place in sorted(places, key=_last_used_s):
        if total <= limit_bytes:
            return
        with _open(_lock_of(place)) as holder:
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # a process uses it
            if place == but:
                continue
            gone = place.rename(place.with_name(f".{place.name}.{os.getpid()}.gone"))
            total -= sizes[place]
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()


def _last_used_s(place: Path) -> float:
    lock = _lock_of(place)
    return lock.stat().st_mtime if lock.exists() else 0.0


def _lock_of(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


def _open(path: Path) -> TextIOWrapper:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _name(digest: str) -> str:
    return f"files/md5/{digest[:2]}/{digest[2:]}"


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
