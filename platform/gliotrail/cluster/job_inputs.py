"""The inputs of a stage that runs as a Ray job, on the job's machines.

Its working folder there holds code, params.yaml, dvc.lock and `sent.json`, and is temporary. The
data are in each machine's cache (see `content_store`), under the same path everywhere.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import gliotrail
from gliotrail.cluster.content_store import fetch
from gliotrail.errors import ClusterError
from gliotrail.paths import JOB, state_dir
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.mirror import Mirror
from gliotrail.runs.store import Store

SENT_FILE: Final = "sent.json"
_ALIKE: Final = ("ray", "torch", "numpy", "scipy", "nibabel", "safetensors", "mlflow", "dvc")


@dataclass(frozen=True)
class JobInputs:
    """A stage and all that it needs.

    job: its name in Ray.
    words: arguments of the stage's script.
    inputs, outputs: paths in the checkout; inputs with their digests.
    store: DVC's settings of the remote, without secrets.
    versions: of Python and the packages that decide a stage's result.
    origin: tags of the checkout, for runs: see `lineage`.
    code: the digest of the changes on top of the checkout's commit.
    env: addresses, for machines that have none of their own.
    """

    job: str
    stage: str
    words: Sequence[str]
    inputs: Mapping[str, str]
    outputs: Sequence[str]
    store: Mapping[str, Any]
    versions: Mapping[str, str]
    origin: Mapping[str, str]
    code: str | None
    env: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write it into the package that is sent."""
        (folder / SENT_FILE).write_text(json.dumps(asdict(self), indent=1))

    @property
    def common_store(self) -> Store:
        """The store of data and results; this machine's own AWS_ENDPOINT_URL wins."""
        own = os.environ.get("AWS_ENDPOINT_URL")
        return Store({k: v for k, v in self.store.items() if k != "endpointurl" or not own})


def result_name(job: str) -> str:
    """The name of the store's file that lists a job's outputs by path and digest."""
    return f"gliotrail/jobs/{job}.json"


def sent() -> JobInputs | None:
    """This job's inputs; None in a process outside a job."""
    if not os.environ.get(JOB):
        return None
    # Ray puts its workers into folders of their own
    return JobInputs(**json.loads((Path(gliotrail.__file__).parents[2] / SENT_FILE).read_text()))


def bring_inputs() -> dict[str, Path]:
    """Fetch a job's inputs to this machine's cache; nothing in a process without a job.

    Returns:
        where each path of the checkout is.

    Raises:
        DataError, ClusterError: as `fetch`.
    """
    job = sent()
    if job is None:
        return {}
    store, cache = job.common_store, state_dir() / "cache"
    return {path: fetch(digest, store, cache) for path, digest in job.inputs.items()}


def mirror_of(run: RunFolder) -> Mirror | None:
    """A run's copy in the store, which all machines of a job share; None without a job."""
    job = sent()
    return Mirror(run, job.common_store) if job else None


def versions_here() -> dict[str, str]:
    """The versions of Python and packages, without PyTorch's suffix for CPU or GPU."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    return found | {name: metadata.version(name).partition("+")[0] for name in _ALIKE}


def check_versions(wanted: Mapping[str, str], got: Mapping[str, str], machine: str) -> None:
    """Refuse versions that may change results, or messages between machines.

    Raises:
        ClusterError: naming both versions of each package that differs.
    """
    wrong = [name for name, version in wanted.items() if got.get(name) != version]
    if wrong:
        raise ClusterError(
            "versions differ from those of the submitting machine",
            where=machine,
            wanted=", ".join(f"{name} {wanted[name]}" for name in wrong),
            got=", ".join(f"{name} {got.get(name, 'missing')}" for name in wrong),
            do="install the same on both (constraints.txt has them all)",
        )
