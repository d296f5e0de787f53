"""Several raylets on this machine, each a node to Ray, with logical GPUs and no card."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from gliotrail.cluster.connection import SETTINGS
from gliotrail.cluster.gpus import TEST_ON_CPU
from gliotrail.cluster.ray_internals import read_token_again
from gliotrail.progress import meanwhile

SLOW = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_enable_worker_prestart": "0",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_initial_delay_ms": "60000",
    "GLOO_SOCKET_IFNAME": "lo",
}
"""Many raylets share two cores here: nobody is taken for dead because it waits for its turn."""


@contextmanager
def raylets(number: int) -> Iterator[Cluster]:
    """A head that has nothing, and nodes of a CPU and a GPU; this process's RAY_ADDRESS is theirs.

    Their workers compute on CPUs where they are given a GPU.
    """
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (SETTINGS | SLOW | {TEST_ON_CPU: "1"}).items():
            patched.setenv(name, value)
        patched.setenv("RAY_AUTH_MODE", "token")
        patched.setenv("RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN") or "0" * 64)
        read_token_again()
        of_each: dict[str, Any] = {"object_store_memory": 80_000_000, "include_dashboard": False}
        made = Cluster()
        try:
            made.add_node(num_cpus=0, wait=False, **of_each)
            for _ in range(number):
                made.add_node(num_cpus=1, num_gpus=1, wait=False, **of_each)
            made.wait_for_nodes(timeout=300)
            patched.setenv("RAY_ADDRESS", made.address)
            yield made
        finally:
            made.shutdown()


@contextmanager
def workers_seen(every_s: float = 0.5) -> Iterator[dict[str, str]]:
    """While the block runs: each of Ray Train's workers, and the node that it is on."""
    seen: dict[str, str] = {}

    def look() -> None:
        for name, actor in ray._private.state.actors().items():
            node = actor["Address"]["NodeID"]
            if actor["ActorClassName"] == "RayTrainWorker" and node:
                seen[name] = node

    with meanwhile(look, every_s):
        yield seen
