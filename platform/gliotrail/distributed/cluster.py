"""A Ray cluster to run on: the one at RAY_ADDRESS, or one of this machine, of loopback only."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
_LOCAL_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # nobody but this machine gets in
    # processes that take seconds to start: idle workers that Ray Train can't use, and a watch for
    # nodes that a cloud takes back
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
WORKERS = "GLIOTRAIL_WORKERS"


@dataclass(frozen=True)
class Resources:
    """What one training takes."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int

    def per_worker(self) -> dict[str, float]:
        """As Ray wants it."""
        gpu = {"GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker)} | gpu

    def describe(self) -> str:
        """For messages: `2 workers of 1 CPU`."""
        gpus = f" and {self.gpus_per_worker} GPU" if self.gpus_per_worker else ""
        return f"{self.workers} workers of {self.cpus_per_worker} CPU{gpus}"


@contextmanager
def cluster() -> Iterator[Callable[[], None]]:
    """Connect to Ray in the background; what was started here is stopped at the end.

    >>> with cluster() as connected:
    ...     import torch  # while Ray starts
    ...     connected()

    Within another `cluster()` it is that one.

    Yields:
        `connected`, which waits for it and raises ClusterError where nothing answers.
    """
    if ray.is_initialized():
        yield lambda: None
        return
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (_SETTINGS if address else _SETTINGS | _LOCAL_SETTINGS).items():
        os.environ.setdefault(name, value)
    with ThreadPoolExecutor(1, "ray") as starter:
        started = starter.submit(_connect, address)
        try:
            yield started.result
        finally:
            if started.exception() is None:
                ray.shutdown()


def _connect(address: str | None) -> None:
    # it warns that a thread can't handle signals; this process handles its own
    logging.getLogger("ray._private.worker").addFilter(lambda r: "SIGTERM handler" not in r.msg)
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


def is_own() -> bool:
    """Whether the cluster is one that ends with this process."""
    return not os.environ.get("RAY_ADDRESS")


def cpus_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resources(workers: int | None) -> Resources:
    """What one training takes of the connected cluster: GPUs where there are some.

    Args:
        workers: how many; None leaves it to what there is.

    Raises:
        ClusterError: the cluster, as it is now, can't give so much.
    """
    nodes, cpus, gpus = _nodes(), _total("CPU"), _total("GPU")
    workers = workers or gpus or min(2, cpus)
    of_one = 1 if gpus else 0
    # the most cores a worker can have, each worker on one node
    for cpus_per_worker in range(max(1, cpus // max(1, workers)), 0, -1):
        wanted = Resources(workers, cpus_per_worker, of_one)
        if sum(_fitting(wanted, node) for node in nodes) >= workers >= 1:
            return wanted
    raise ClusterError(
        "training can never start",
        wanted=Resources(workers, 1, of_one).describe(),
        got=f"a cluster of {cpus} CPUs and {gpus} GPUs",
        do=f"lower {WORKERS}",
    )


def places() -> int:
    """How many workers of one GPU, or of one core where there are no GPUs, run at a time."""
    return _total("GPU") or _total("CPU")


def _nodes() -> list[dict[str, float]]:
    """What each node has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _total(name: str) -> int:
    return sum(int(node.get(name, 0)) for node in _nodes())


def _fitting(wanted: Resources, node: dict[str, float]) -> int:
    """How many workers fit on a node."""
    return min(int(node.get(name, 0) // n) for name, n in wanted.per_worker().items())


def workers_wanted() -> int | None:
    """GLIOTRAIL_WORKERS, if it is set. It changes how fast a result comes, never which.

    Raises:
        ParamsError: it is no whole number above 0.
    """
    text = os.environ.get(WORKERS)
    if not text:
        return None
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise ParamsError(WORKERS, wanted="a whole number above 0", got=repr(text))
    return int(text)
