"""A run's description and origin: params, commit, data hashes, code, environment."""

import getpass
import hashlib
import json
import os
import platform
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from gliotrail.errors import GliotrailError
from gliotrail.paths import git
from gliotrail.plain_yaml import parse_yaml, read_yaml
from gliotrail.runs.code_snapshot import code_now
from gliotrail.runs.journal import now_ms

_PACKAGES = ("dvc", "mlflow", "numpy", "nibabel", "ray", "safetensors", "scipy", "torch")

PLANNED_TAG: Final = "gliotrail.planned_voxels"
"""How many voxels `train` sees by the committed params.yaml."""

LAYOUT: Final = {"workers": "GLIOTRAIL_WORKERS", "threads": "OMP_NUM_THREADS"}
"""Environment variables that say how a training is spread, by the name of their tag."""

ORIGIN: Final = "GLIOTRAIL_ORIGIN"
"""Environment variable of a job: the sender's `Origin.of_checkout`, as JSON."""

OWN_LOOP: Final = "run"
"""The kind of a run that `gliotrail.track` tracks."""

_STAGE_OF = {"trial": "sweep", "fold": "crossvalidate"}  # other kinds are named as their stage


@dataclass(frozen=True)
class Origin:
    """Where the runs of a command come from: flat tags, and DVC's digests by path."""

    tags: Mapping[str, str]
    digests: Mapping[str, str]

    @classmethod
    def now(cls, tell: bool = True) -> "Origin":
        """The origin in the current folder's checkout, or in the one that sent this job.

        Args:
            tell: print a line if the code can't be rebuilt.
        """
        sent = os.environ.get(ORIGIN)
        checkout = json.loads(sent) if sent else code_now(tell).tags() | _planned()
        return cls(provenance() | checkout, dvc_digests())

    def of_checkout(self) -> dict[str, str]:
        """What a job can't know without the checkout: commit, code, person."""
        return {key: tag for key, tag in self.tags.items() if not key.startswith("env.")}


def describe(
    origin: Origin,
    *,
    experiment: str,
    kind: str,
    name: str,
    params: Mapping[str, Any],
    inputs: Any,
    data: Sequence[str],
    parent: str | None = None,
) -> dict[str, Any]:
    """Describe a new run, for its folder and for MLflow.

    Args:
        kind: `train`, `pretrain`, `sweep`, `trial`, `fold`, or OWN_LOOP.
        params: nested, as in params.yaml.
        inputs: everything the result depends on, as plain values.
        data: paths of the input data; those that DVC tracks become datasets.
        parent: our own id of the parent run.
    """
    known = [path for path in data if path in origin.digests]
    init = inputs.get("init") if isinstance(inputs, Mapping) else None
    return {
        "id": uuid.uuid4().hex,
        "experiment": experiment,
        "name": name,
        "parent": parent,
        "started_ms": now_ms(),
        "params": params,
        "tags": {
            **origin.tags,
            "mlflow.source.name": _source(kind),
            "mlflow.source.type": "JOB",
            "gliotrail.kind": kind,
            "gliotrail.inputs": digest_of(inputs),
            **({"gliotrail.init_sha256": init} if init else {}),
            **{f"dvc.{path}": origin.digests[path] for path in known},
        },
        "datasets": [
            {"name": path, "digest": origin.digests[path], "path": path, "context": "training"}
            for path in known
        ],
    }


def _source(kind: str) -> str:
    if kind == OWN_LOOP:
        return Path(sys.argv[0]).name or "python"
    return f"pipelines.{_STAGE_OF.get(kind, kind)}"


def as_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with JSON's types, others as text."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def provenance() -> dict[str, str]:
    """Commit, person, versions, hardware and command, as flat tags."""
    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {
        "mlflow.source.git.commit": commit or "unknown",
        "mlflow.user": _user(),
        "gliotrail.uncommitted_changes": str(bool(changed)).lower() if commit else "unknown",
        "env.python": platform.python_version(),
        "env.machine": f"{platform.system()} {platform.machine()}",
        "env.cpu": f"{os.cpu_count()} x {cpu_model()}",
        "env.cores": str(_cores()),
        **{f"env.{key}": os.environ[name] for key, name in LAYOUT.items() if os.environ.get(name)},
        "env.command": " ".join(Path(w).name if w.startswith("/") else w for w in sys.argv),
        **{f"env.{name}": version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    """A package's version; None for an extra that is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _planned() -> dict[str, str]:
    """The plan of the newest commit's params.yaml; nothing if it can't be read."""
    try:
        section = parse_yaml(git("show", "HEAD:./params.yaml"), "params.yaml")["train"]
        return {PLANNED_TAG: str(int(section["epochs"]) * int(section["epoch_voxels"]))}
    except (GliotrailError, KeyError, TypeError, ValueError):
        return {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def dvc_digests(lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """DVC's digest of each output in dvc.lock, by path: a file's md5, a folder's `<md5>.dir`."""
    stages = read_yaml(lock)["stages"] if lock.is_file() else {}
    return {
        out["path"]: out["md5"]
        for stage in stages.values()
        for out in stage.get("outs", ())
        if "md5" in out
    }


def digest_of(values: Any) -> str:
    """A short hash of plain values, the same for equal values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cpu_model() -> str:
    """The kind of this machine's CPUs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _cores() -> int:
    """The cores that this process may use."""
    here = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return len(here)
