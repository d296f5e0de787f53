"""A Ray cluster to run on: the one at RAY_ADDRESS, or one of this machine, of loopback only."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from gliotrail.errors import ClusterError, ParamsError

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports block up to 2 s with the default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # doubled prints
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Resources:
    """What one training takes."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float

    def per_worker(self) -> dict[str, float]:
        """As Ray wants it."""
        gpu = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker)} | gpu

    def describe(self) -> str:
        """For messages: `2 workers of 1 CPU`."""
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        return f"{self.workers} workers of {self.cpus_per_worker} CPU{gpus}"


@contextmanager
def cluster() -> Iterator[None]:
    """Be connected to Ray; what was started here is stopped at the end.

    Raises:
        ClusterError: nothing answers at RAY_ADDRESS.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody but this machine gets in
    try:
        ray.init(
            address=address or "local",
            num_cpus=None if address else cpus_here(),
            include_dashboard=None if address else False,
            logging_level=logging.WARNING,
            log_to_driver=bool(os.environ.get("GLIOTRAIL_RAY_LOGS")),
        )
    except ConnectionError as error:
        raise ClusterError(
            "no Ray cluster answers", where=f"RAY_ADDRESS={address}", got=str(error)
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def cpus_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resources(default_workers: int | None = None) -> Resources:
    """What one training takes of the connected cluster: GPUs where there are some.

    GLIOTRAIL_WORKERS sets the number of workers; it changes how fast a result comes, never which.

    Raises:
        ParamsError: GLIOTRAIL_WORKERS is no whole number above 0.
        ClusterError: the cluster will never have so much.
    """
    have = ray.cluster_resources()
    cpus, gpus = int(have.get("CPU", 1)), int(have.get("GPU", 0))
    workers = workers_wanted() or default_workers or (gpus or min(2, cpus))
    wanted = Resources(workers, max(1, cpus // workers), 1.0 if gpus else 0.0)
    if workers > cpus or workers * wanted.gpus_per_worker > gpus:
        raise ClusterError(
            "training can never start",
            wanted=wanted.describe(),
            got=f"a cluster of {cpus} CPUs and {gpus} GPUs",
            do="lower GLIOTRAIL_WORKERS",
        )
    return wanted


def workers_wanted() -> int | None:
    """GLIOTRAIL_WORKERS, if it is set.

    Raises:
        ParamsError: it is no whole number above 0.
    """
    text = os.environ.get("GLIOTRAIL_WORKERS")
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ParamsError("GLIOTRAIL_WORKERS", wanted="a whole number above 0", got=repr(text))
    return int(text)
