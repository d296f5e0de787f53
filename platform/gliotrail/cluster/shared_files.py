"""Share a file or folder that a stage made with the cluster's other machines, by its hash.

For a job's inputs see `job_inputs`. Without a job all machines see one disk.
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
    """A shared file or folder. Cheap to send to another machine.

    path: where it was made.
    digest: of its content in the job's store; None without a job.
    """

    path: Path
    digest: str | None

    def here(self) -> Path:
        """Its path on this machine, fetched if need be: to read, not to change.

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
    """Make a file or folder, as it is now, available to the cluster's other machines.

    Raises:
        DataError, ClusterError: as `put`.
    """
    job = sent()
    return SharedFile(path, put(path, job.common_store) if job else None)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder below the state folder, which without a job is on the shared disk."""
    state_dir().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="scratch-", dir=state_dir()) as folder:
        yield Path(folder)
