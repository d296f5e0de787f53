"""Ray starts on a machine that is too busy for Ray's own limits."""

import re
import threading
import time
from contextlib import suppress

import psutil
import pytest
import ray
from ray._private import services

from gliotrail.cluster import ray_internals
from gliotrail.cluster.connection import cluster


@pytest.mark.long
@pytest.mark.starts_ray
def test_ray_starts_where_its_agents_take_longer_than_a_raylet_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both agents are stopped as soon as they are there; the raylet's limit is 15 s."""
    monkeypatch.setattr(services, "start_raylet", services.start_raylet)
    monkeypatch.setattr(services, "get_node", services.get_node)
    stopped: dict[int, psutil.Process] = {}
    over = threading.Event()

    def stop_agents() -> None:
        while not over.wait(0.005):
            for each in ray_internals._of_ray():
                with suppress(psutil.Error):
                    words = " ".join(each.cmdline()[:3])
                    if each.pid not in stopped and re.search(r"agent(/main)?\.py", words):
                        each.suspend()
                        stopped[each.pid] = each

    thread = threading.Thread(target=stop_agents)
    thread.start()
    try:
        with cluster() as connected:
            connected()
            time.sleep(16)
            assert len(stopped) == 2
            assert ray.get(ray.remote(lambda: "done").remote(), timeout=60) == "done"
            over.set()
            for each in stopped.values():
                each.resume()
    finally:
        over.set()
        thread.join()
