"""A file or folder that is made while a stage runs, for the cluster's other machines: by its hash.

What a job was sent is another matter: see `job_inputs`. Without a job all machines see one disk.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gliotrail.cluster.content_store import download, fetch, put
from gliotrail.cluster.job_inputs import sent
from gliotrail.paths import state_dir


@dataclass(frozen=True)
class SharedFile:
    """Cheap to send to another machine.

    path: where it was made.
    digest: in the store of the job; None without a job.
    """

    path: Path
    digest: str | None

    def here(self) -> Path:
        """Where it is on this machine, which fetches it if need be: to read, not to change.

        Raises:
            DataError, ClusterError: as `fetch`.
        """
        job = sent()
        if job is None or self.digest is None:
            return self.path
        return fetch(self.digest, job.common_store, state_dir() / "cache")

    def copy_into(self, folder: Path) -> None:
        """Add the content of a shared folder to another one.

        Raises:
            DataError, ClusterError: as `download`.
        """
        job = sent()
        if job is None or self.digest is None:
            shutil.copytree(self.path, folder, dirs_exist_ok=True)
        else:
            download(self.digest, job.common_store, folder)


def share(path: Path) -> SharedFile:
    """Let the cluster's other machines have a file or folder, as it is now.

    Raises:
        DataError, ClusterError: as `put`.
    """
    job = sent()
    return SharedFile(path, put(path, job.common_store) if job else None)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder below the state folder, so on the disk that machines without a job share."""
    state_dir().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="scratch-", dir=state_dir()) as folder:
        yield Path(folder)
