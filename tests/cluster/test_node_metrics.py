"""What is told of the workers' machines, with real processes; no GPU is here."""

import time

import pytest
import torch
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from gliotrail.cluster.node_metrics import read_gpus, sampling
from gliotrail.segmentation.loop import World
from tests.support.gloo import Workers, gloo_workers

CPU = torch.device("cpu")


def mlflows_own() -> set[str]:
    monitors = CPUMonitor(), DiskMonitor(), NetworkMonitor()
    for monitor in monitors:
        monitor.collect_metrics()
    return {f"system/{name}" for monitor in monitors for name in monitor.metrics}


def test_one_machine_is_told_under_mlflows_own_names() -> None:
    with sampling(0, 1, 0, True, lambda tensor: None, CPU, every_s=0.05) as tell:
        time.sleep(0.2)
        told = tell()
        again = tell()  # at least one sample each time
    assert mlflows_own() == {key for key in told if not key.startswith("system/gpu_")}
    assert set(again) == set(told)
    assert 0 <= told["system/cpu_utilization_percentage"] <= 100
    assert 0 < told["system/system_memory_usage_percentage"] <= 100
    assert told["system/disk_available_megabytes"] > 1


def told_by(world: World, nodes: list[int], first: list[bool]) -> dict[str, float]:
    node, is_first = nodes[world.rank], first[world.rank]
    of = world.rank, world.workers, node, is_first, world.sum_in_place, world.device
    with sampling(*of) as tell:
        return tell()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Workers:
    with gloo_workers(3, tmp_path_factory.mktemp("gloo")) as workers:
        yield workers


def test_each_machine_is_told_once_and_by_its_number_where_there_are_several(
    three: Workers,
) -> None:
    first, second, third = three(3, told_by, [0, 0, 1], [True, False, True])
    assert first == second == third
    names = {key.removeprefix("system/") for key in mlflows_own()}
    assert {key for key in first if "gpu_" not in key} == {
        f"system/node_{n}/{name}" for n in (0, 1) for name in names
    }
    alone = three(3, told_by, [0, 0, 0], [True, False, False])[0]
    assert {f"system/{name}" for name in names} <= set(alone)


def test_what_nvidias_tool_tells_is_read_and_what_it_does_not_tell_left_out() -> None:
    table = "40960, 81920, 97, 350.5, 700.00\n1024, 81920, [N/A], [N/A], [N/A]\n"
    assert read_gpus(table) == pytest.approx({
        "gpu_0_memory_usage_megabytes": 42949.67296, "gpu_0_memory_usage_percentage": 50,
        "gpu_0_utilization_percentage": 97, "gpu_0_power_usage_watts": 350.5,
        "gpu_0_power_usage_percentage": 50.0714, "gpu_1_memory_usage_megabytes": 1073.741824,
        "gpu_1_memory_usage_percentage": 1.25,
    }, rel=1e-5)  # fmt: skip
    assert read_gpus("") == {}
