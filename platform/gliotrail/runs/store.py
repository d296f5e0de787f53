"""The store that all machines share: DVC's remote (S3, a folder, or whatever DVC can reach).

files/md5/ab/cdef...    DVC's own: content by its hash
gliotrail/              Gliotrail's own: jobs and runs of a cluster
"""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from gliotrail.errors import ClusterError
from gliotrail.runs.addresses import shown

_NO_SECRETS: Final = ("url", "endpointurl", "region", "use_ssl", "projectname", "account_name")


@dataclass(frozen=True)
class Store:
    """Files by name, such as `gliotrail/jobs/a.json`; each is there whole or not at all.

    All methods raise ClusterError if the store does not answer, or refuses.

    config: DVC's settings of a remote.
    """

    config: Mapping[str, Any]

    @classmethod
    def of_checkout(cls, root: Path = Path()) -> "Store":
        """DVC's default remote.

        Raises:
            ClusterError: there is no default remote.
        """
        from dvc.config import Config  # half a second of imports
        from dvc.fs import get_fs_config

        config = Config(dvc_dir=str(root / ".dvc"))
        name = config["core"].get("remote")
        if name is None:
            do = "`dvc remote add --default NAME s3://BUCKET/FOLDER` gives machines a common store"
            raise ClusterError("DVC has no default remote", do=do)
        return cls(get_fs_config(config, name=name))

    def without_secrets(self) -> dict[str, Any]:
        """The settings without keys, for other machines, which have their own."""
        return {key: self.config[key] for key in _NO_SECRETS if key in self.config}

    @property
    def url(self) -> str:
        """The store's address."""
        return str(self.config["url"])

    @property
    def folder(self) -> Path | None:
        """The store's folder, if it is one on this machine; else None."""
        return Path(self.url) if "://" not in self.url else None

    @cached_property
    def _there(self) -> tuple[Any, str]:
        """The file system, of fsspec's kind, and the store's path in it."""
        from dvc.fs import get_cloud_fs

        kind, config, path = get_cloud_fs({}, **self.config)
        return kind(**config).fs, path

    @contextmanager
    def _asked(self) -> Iterator[tuple[Any, str]]:
        try:
            fs, root = self._there
            fs.invalidate_cache()  # others write, too
            yield fs, root
        except FileNotFoundError:
            raise
        except Exception as error:
            # as broad as the errors of the stores' clients
            got = f"{type(error).__name__}: {error}".split("\n")[0]
            what = "the store of data and runs"
            raise ClusterError(what, where=shown(self.url), got=got) from error

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        with self._asked() as (fs, root):
            return bool(fs.exists(f"{root}/{name}"))

    def names(self, folder: str) -> list[str]:
        """All files below a folder, by their names in it, sorted."""
        with self._asked() as (fs, root):
            start = f"{root}/{folder}/"
            found = (str(path).removeprefix(start) for path in fs.find(start))
            return sorted(name for name in found if not name.endswith(".partial"))

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none."""
        with self._asked() as (fs, root):
            try:
                return bytes(fs.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Make a file, or replace it."""
        if self.folder:
            self._whole(name, lambda path: path.write_bytes(content))
            return
        with self._asked() as (fs, root):
            fs.pipe_file(f"{root}/{name}", content)

    def upload(self, path: Path, name: str) -> None:
        """Copy a file of this machine to the store."""
        if self.folder:
            self._whole(name, lambda partial: shutil.copyfile(path, partial))
            return
        with self._asked() as (fs, root):
            fs.put_file(str(path), f"{root}/{name}")

    def _whole(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file of a folder; two processes may write the same one at once."""
        assert self.folder is not None
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            write(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def download(self, name: str, path: Path) -> None:
        """Copy a file of the store to this machine.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._asked() as (fs, root):
            path.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{root}/{name}", str(path))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._asked() as (fs, root):
            try:
                fs.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return
