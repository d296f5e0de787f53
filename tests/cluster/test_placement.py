"""Who gets a GPU of a cluster, on nodes that have logical ones and no card. The start is slow."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from gliotrail.cluster.case_tasks import each_case
from gliotrail.cluster.connection import START_LIMIT, cluster
from gliotrail.cluster.gpus import TEST_ON_CPU
from gliotrail.cluster.train import train
from gliotrail.errors import ClusterError, TrainingError
from gliotrail.runs.journal import RunFolder
from tests.support.crops import Crops
from tests.support.raylets import raylets, workers_seen

pytestmark = [pytest.mark.long, pytest.mark.starts_ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[Cluster]:
    """Two nodes of one CPU and one GPU; this process is connected."""
    with raylets(2) as made, cluster() as connected:
        connected()
        yield made


def trained(crops: Crops, state: Path, **changes: object) -> RunFolder:
    train(crops.params(**changes), crops.prepared, crops.patches, state / "sweep", state / "out")
    (path,) = state.glob("runs/*/run.json")
    return RunFolder(path.parent)


def test_without_a_word_each_gpu_gets_a_worker_each_on_its_node(
    two_gpus: Cluster,
    crops: Crops,
    new_state: Callable[[], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    with workers_seen() as seen:
        run = trained(crops, new_state(), train__epochs=1)
    assert run.is_finished()
    assert "train: on GPUs: the cluster has 2" in capfd.readouterr().err
    assert run.history()[-1].made_on["workers"] == "2"
    assert len(seen) == len(set(seen.values())) == 2


def test_more_gpus_than_there_are_is_one_error_at_once(
    two_gpus: Cluster,
    crops: Crops,
    new_state: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLIOTRAIL_WORKERS", "3")
    monkeypatch.setenv("GLIOTRAIL_GPUS", "1")
    began_s = time.monotonic()
    with pytest.raises(ClusterError) as told:
        trained(crops, new_state())
    assert str(told.value).startswith(
        "training can never start: wanted 3 workers of 1 CPU and 1 GPU, got a cluster of 2 CPUs"
        " and 2 GPUs; lower GLIOTRAIL_WORKERS"
    )
    assert time.monotonic() - began_s < 60


def test_gpus_that_others_hold_are_one_error_within_the_start_limit(
    two_gpus: Cluster,
    crops: Crops,
    new_state: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @ray.remote(num_gpus=1, num_cpus=0)
    class Other:
        def is_there(self) -> bool:
            return True

    monkeypatch.setenv("GLIOTRAIL_WORKERS", "2")
    monkeypatch.setenv(START_LIMIT, "5")
    other = Other.remote()
    assert ray.get(other.is_there.remote())
    began_s = time.monotonic()
    with pytest.raises(ClusterError, match="train can't start within 5 s: others hold what it"):
        trained(crops, new_state())
    assert time.monotonic() - began_s < 60
    ray.kill(other)


def test_a_gpu_that_does_not_compute_is_one_error_and_never_the_cpu(
    two_gpus: Cluster,
    crops: Crops,
    new_state: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.delenv(TEST_ON_CPU)
        # the only one that has two CPUs for a worker
        honest = two_gpus.add_node(num_cpus=2, num_gpus=1, object_store_memory=80_000_000)
    monkeypatch.setenv("GLIOTRAIL_WORKERS", "1")
    with pytest.raises(TrainingError) as told:
        trained(crops, new_state())
    assert "a worker was given a GPU, and PyTorch can't compute on it: got" in str(told.value)
    assert "or set GLIOTRAIL_GPUS=0" in str(told.value)
    two_gpus.remove_node(honest)


def slowly(notes: Path, case: str, device: torch.device) -> tuple[int, str]:
    """Notes its node and goes on for long, if it is the first."""
    node = ray.get_runtime_context().get_node_id()
    with notes.open("a") as file:
        file.write(f"{node}\n")
    if notes.read_text().count("\n") == 1:
        time.sleep(600)
    return len(ray.get_gpu_ids()), node


def test_a_case_that_is_lost_with_its_node_is_done_again_on_another(
    two_gpus: Cluster, tmp_path: Path
) -> None:
    notes, came = tmp_path / "notes", {}

    def cut_off() -> None:
        while not notes.is_file():
            time.sleep(0.2)
        lost = notes.read_text().strip()
        (node,) = [node for node in two_gpus.worker_nodes if node.node_id == lost]
        two_gpus.remove_node(node, allow_graceful=False)

    with ThreadPoolExecutor(1) as beside:
        cut = beside.submit(cut_off)
        each_case(partial(slowly, notes), ["a"], came.__setitem__, "evaluate")
        cut.result()
    first, second = notes.read_text().split()
    assert first != second
    assert came == {"a": (1, second)}
