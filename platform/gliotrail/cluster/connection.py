"""A Ray cluster to run on: the one at RAY_ADDRESS, or a private one on this machine.

Ray listens on all addresses of the machine even if it is asked not to; so it requires a token that
only processes started from here have.
"""

import logging
import os
import re
import secrets
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import gettempdir

import ray

from gliotrail.cluster.ray_internals import (
    end_what_a_start_left,
    leave_sigterm_to_us,
    read_token_again,
    tell_a_raylet_its_agents_ports,
    tell_deaths_in_one_line,
    wait_longer_for_a_raylet,
)
from gliotrail.cluster.ray_watch import while_ray_lives, while_ray_starts
from gliotrail.errors import ClusterError, ParamsError
from gliotrail.paths import short_temp
from gliotrail.progress import say

START_LIMIT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports block up to 2 s with the default
    START_LIMIT: "300",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # doubled prints
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # a busy machine takes longer to start its processes than Ray's 30 to 60 s
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "300000",
}
_LOCAL_SETTINGS = {
    # without processes that take seconds to start: idle workers that Ray Train can't use, and a
    # watch for nodes that a cloud takes back
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_SHM = "/dev/shm"  # noqa: S108 - Ray's place for it
_STARTS = 3
"""Attempts: on a busy machine one of Ray's processes may be too late for another."""
_RAY_LOGS = "GLIOTRAIL_RAY_LOGS"
WORKERS = "GLIOTRAIL_WORKERS"
GPUS = "GLIOTRAIL_GPUS"


@dataclass(frozen=True)
class Resources:
    """One training's resources; with `at_least` it goes on with fewer workers if some are lost."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    at_least: int | None = None

    def per_worker(self) -> dict[str, float]:
        """The resources in Ray's form."""
        gpu = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker)} | gpu

    def describe(self) -> str:
        """For messages: `2 workers of 1 CPU`."""
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        fewest = f"{self.at_least} to " if self.at_least else ""
        return f"{fewest}{self.workers} workers of {self.cpus_per_worker} CPU{gpus}"


@contextmanager
def cluster() -> Iterator[Callable[[], None]]:
    """Connect to Ray in the background; if it was started here, it is stopped at the end.

    >>> with cluster() as connected:
    ...     import torch  # while Ray starts
    ...     connected()

    Within another `cluster()` it is the same one.

    Yields:
        `connected`, which waits for it and raises ClusterError if nothing answers.
    """
    if ray.is_initialized():
        yield lambda: None
        return
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (SETTINGS if address else SETTINGS | _LOCAL_SETTINGS).items():
        os.environ.setdefault(name, value)
    if not address:
        os.environ["RAY_AUTH_MODE"] = "token"  # whatever the user's setting for other clusters
        os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
        read_token_again()
    leave_sigterm_to_us()
    if not os.environ.get(_RAY_LOGS):
        tell_deaths_in_one_line()
    with ThreadPoolExecutor(1, "ray") as starter:
        started = starter.submit(_connect, address)
        try:
            with ExitStack() as watched:  # until the end, when Ray's processes are stopped

                def connected() -> None:
                    started.result()
                    if not (address or "").startswith("ray://"):
                        watched.enter_context(while_ray_lives(not address))

                yield connected
        finally:
            if started.exception() is None:
                ray.shutdown()


def _connect(address: str | None) -> None:
    if address:
        check_answer(address)
    else:
        os.environ["RAY_TMPDIR"] = os.environ.get("RAY_TMPDIR") or short_temp()
        wait_longer_for_a_raylet(start_limit_s())
        tell_a_raylet_its_agents_ports()
    for left in reversed(range(_STARTS)):
        try:
            with while_ray_starts():
                _init(address)
        except Exception as error:
            # as broad as Ray's errors if its start takes more than 30 s
            if address and not isinstance(error, ConnectionError | ValueError):
                raise
            if address:
                raise _no_answer(address, error) from None
            if not left:
                raise _no_start(error) from None
            say(f"Ray did not start ({error}); trying again")
            ray.shutdown()
            end_what_a_start_left()
        else:
            return


def _init(address: str | None) -> None:
    # Ray passes the interpreter to a shell unquoted, and a path may have a space
    python = shlex.quote(sys.executable)
    ray.init(
        address=address or "local",
        runtime_env=None if python == sys.executable else {"py_executable": python},
        num_cpus=None if address else cpus_here(),
        include_dashboard=None if address else False,
        # without writable shared memory Ray's own processes would crash
        _plasma_directory=None if address or os.access(_SHM, os.W_OK) else gettempdir(),
        logging_level=logging.WARNING,
        log_to_driver=bool(os.environ.get(_RAY_LOGS)),
    )


def check_answer(address: str) -> None:
    """Check that a server listens: otherwise Ray itself waits for minutes.

    Raises:
        ClusterError: none does.
    """
    parts = re.fullmatch(r"(?:ray://)?\[?([^]/]+?)]?:(\d+)", address)
    if parts is None:
        return
    try:
        socket.create_connection((parts[1], int(parts[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from None


def _no_start(error: Exception) -> ClusterError:
    text = str(error)
    if "AF_UNIX path length" in text:
        do = "set RAY_TMPDIR to a shorter folder, such as /tmp"
        what = "the temporary folder's name is too long for Ray's sockets"
        return ClusterError(what, where=os.environ.get("RAY_TMPDIR") or gettempdir(), do=do)
    busy = "this machine may be too busy; the same command goes on"
    return ClusterError("Ray does not start", got=error, do=busy if "timed out" in text else None)


def _no_answer(address: str | None, error: Exception) -> ClusterError:
    return ClusterError("no Ray cluster answers", where=f"RAY_ADDRESS={address}", got=error)


def is_own() -> bool:
    """Whether the cluster is one that ends with this process."""
    return not os.environ.get("RAY_ADDRESS")


def cpus_here() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Node = Mapping[str, float]
"""A machine's resources, by Ray's names: CPU, GPU."""


def nodes() -> list[Node]:
    """The resources of each machine of the connected cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def total(nodes: Sequence[Node], name: str) -> int:
    """The total number of CPUs or GPUs."""
    return sum(int(node.get(name, 0)) for node in nodes)


def share_out(
    nodes: Sequence[Node],
    workers: int | None,
    at_least: int | None = None,
    of_a_gpu: float = 0,
    patches: int | None = None,
    what: str = "training",
) -> Resources:
    """Each worker's resources in one training: its share of cores, and of a GPU.

    Args:
        nodes: the cluster's.
        workers: how many; None is one for each GPU, or without GPUs two, one on a single core.
        at_least: the fewest workers to begin and go on with.
        of_a_gpu: each worker's share of a GPU.
        patches: of a step; the most workers if `workers` is None.
        what: the job, for messages.

    Raises:
        ClusterError: the cluster, as it is now, can't give so much.
    """
    cpus, gpus = total(nodes, "CPU"), total(nodes, "GPU")
    most = max(1, gpus if of_a_gpu else min(2, cpus))
    workers = workers or min(most, patches or most)
    for now in range(workers, (at_least or workers) - 1, -1):
        # the most cores that each can have: a worker is on one machine
        for cpus_per_worker in range(max(1, cpus // now), 0, -1):
            wanted = Resources(workers, cpus_per_worker, of_a_gpu, at_least)
            if fitting(nodes, wanted) >= now:
                return wanted
    raise ClusterError(
        f"{what} can never start",
        wanted=Resources(workers, 1, of_a_gpu, at_least).describe(),
        got=f"a cluster of {cpus} CPUs and {gpus} GPUs",
        do=f"lower {WORKERS}" + (f", or set {GPUS}=0 for CPUs" if of_a_gpu > gpus else ""),
    )


def fitting(nodes: Sequence[Node], wanted: Resources) -> int:
    """How many such workers fit on the machines; each is on one."""
    each = wanted.per_worker().items()
    return sum(min(int(node.get(name, 0) // n) for name, n in each) for node in nodes)


def workers_wanted() -> tuple[int | None, int | None]:
    """GLIOTRAIL_WORKERS, such as `4` or `1:4`; it changes the speed, never the result.

    Returns:
        how many, and the fewest to go on with; None if not given.

    Raises:
        ParamsError: it is neither.
    """
    text = os.environ.get(WORKERS) or ""
    if ":" not in text:
        return whole_number(WORKERS), None
    parts = re.fullmatch("([1-9][0-9]{0,4}):([1-9][0-9]{0,4})", text)
    if parts is None or int(parts[1]) > int(parts[2]):
        raise ParamsError(WORKERS, wanted="the fewest and the most, such as 1:4", got=repr(text))
    return int(parts[2]), int(parts[1])


def check_shares(workers: int | None, at_least: int | None, batch_size: int, name: str) -> None:
    """Refuse more workers than a step has patches: some would have no work.

    Args:
        name: the variable that says how many.

    Raises:
        ParamsError: there are more workers.
    """
    fitting = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    even = f"{', '.join(map(str, fitting))} have equal shares"
    for number in dict.fromkeys((at_least, workers)):
        if number and number > batch_size:
            wanted = f"at most {batch_size}, as many as train.batch_size ({even})"
            raise ParamsError(name, wanted=wanted, got=f"{number} workers")
    if workers and batch_size % workers:
        shares = f"{batch_size // workers} or {batch_size // workers + 1}"
        say(f"{name}: {workers} workers share {batch_size} patches, {shares} each; {even}")


def start_limit_s() -> float:
    """The limit in seconds for a start that waits for other jobs, or for a cloud's machines."""
    return float(os.environ.get(START_LIMIT) or SETTINGS[START_LIMIT])


def whole_number(name: str) -> int | None:
    """An environment variable, if it is set.

    Raises:
        ParamsError: it is not a whole number above 0.
    """
    text = os.environ.get(name)
    if not text:
        return None
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise ParamsError(name, wanted="a whole number above 0", got=repr(text))
    return int(text)
