"""Waiting for machines. With a real autoscaler, Ray's own, whose machines are processes: `long`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gliotrail.cluster.autoscaling import on_the_way, when_there_are
from gliotrail.cluster.connection import START_LIMIT, nodes, share_out
from gliotrail.errors import ClusterError
from tests.support.ray_head import RayHead
from tests.support.services import free_port

HEAD_ID = "f" * 51 + "00000"
WAIT = """
import sys
from gliotrail.cluster import autoscaling as growing
from gliotrail.cluster.connection import cluster, share_out
from gliotrail.errors import one_line_errors
growing._PATIENCE_S = float(sys.argv[2])
with one_line_errors(), cluster() as connected:
    connected()
    n = int(sys.argv[1])
    print("GOT", growing.when_there_are(lambda there: share_out(there, n), [{"CPU": 1}] * n))
"""


def test_a_cluster_that_cannot_grow_is_not_waited_for(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert when_there_are(lambda there: share_out(there, 2), []).workers == 2
    with pytest.raises(ClusterError, match="training can never start"):
        when_there_are(lambda there: share_out(there, 3), [{"CPU": 1.0}] * 3)
    monkeypatch.setattr("gliotrail.cluster.autoscaling._FIRST_REPORT_S", 0)
    monkeypatch.setenv("RAY_ADDRESS", "as if it were another's")
    assert on_the_way() is None
    with pytest.raises(ClusterError, match="training can never start"):
        when_there_are(lambda there: share_out(there, 3), [{"CPU": 1.0}] * 3)
    assert len(nodes()) == 1


class ScalingHead(RayHead):
    """A head without cores, and an autoscaler that may start two machines of two cores each.

    gpus: of each of them, logical ones.
    """

    def __init__(self, folder: Path, gpus: int = 0) -> None:
        super().__init__(
            folder, cpus=0, RAY_FAKE_CLUSTER="1", RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD_ID
        )
        self.gcs = f"127.0.0.1:{free_port()}"
        self._config = folder / "autoscaling.json"
        self._config.write_text(json.dumps(config(self.gcs, gpus)))

    def command(self) -> list[str]:
        """Of the same option the last one counts."""
        port = self.gcs.rpartition(":")[2]
        return [*super().command(), f"--port={port}", f"--autoscaling-config={self._config}"]


def config(gcs: str, gpus: int) -> dict[str, object]:
    """Of Ray's fake provider of machines."""
    worker = {"CPU": 2, "object_store_memory": 100_000_000} | ({"GPU": gpus} if gpus else {})
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 10,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode", "gcs_address": gcs, "head_node_id": HEAD_ID,
            "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "launch_multiple": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")},
        **{name: [] for name in (
            "initialization_commands", "setup_commands", "head_setup_commands",
            "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
            "cluster_synced_files", "rsync_exclude", "rsync_filter",
        )},
        "file_mounts_sync_continuously": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def scaling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScalingHead]:
    with ScalingHead(tmp_path_factory.mktemp("scaling")).running() as head:
        yield head


@pytest.mark.long
@pytest.mark.timeout(900)
def test_on_a_cluster_that_scales_up_it_says_what_it_waits_for(
    scaling: ScalingHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", scaling.gcs)
    monkeypatch.setenv(START_LIMIT, "60")  # without a machine on the way

    def wait(workers: int, patience_s: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WAIT, str(workers), str(patience_s)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = wait(3, 300)
    print(done.stderr)
    assert "GOT Resources(workers=3, cpus_per_worker=1" in done.stdout, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("waiting for ")]
    assert lines[0].startswith("waiting for 3 workers of 1 CPU: there are 0 CPUs and 0 GPUs; ")
    assert any("on the way: 2 of type worker" in line for line in lines)

    done = wait(9, 20)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: training can never start: wanted 9 workers of 1 CPU, got a cluster of 4 CPUs"
    )


DECIDE = """
from gliotrail.cluster.connection import Resources, cluster, share_out
from gliotrail.cluster.autoscaling import when_there_are
from gliotrail.cluster.gpus import decide
from gliotrail.errors import one_line_errors
with one_line_errors(), cluster() as connected:
    connected()
    share = decide(None, "train")
    each = Resources(1, 1, share).per_worker()
    print("GOT", when_there_are(lambda there: share_out(there, None, of_a_gpu=share), [each]))
"""


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("gpus", "said", "got"),
    [
        (0, "train: on CPUs: the cluster has no GPU and starts none", "gpus_per_worker=0.0"),
        (1, "train: on GPUs: the cluster starts machines with GPUs", "gpus_per_worker=1.0"),
    ],
)
def test_an_autoscaler_is_asked_whether_it_has_gpus(
    gpus: int, said: str, got: str, tmp_path: Path
) -> None:
    with ScalingHead(tmp_path, gpus).running() as head:
        env = os.environ | {"RAY_ADDRESS": head.gcs}
        command = [sys.executable, "-c", DECIDE]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert said in done.stderr.splitlines()
    assert "GOT Resources(workers=" in done.stdout
    assert got in done.stdout
