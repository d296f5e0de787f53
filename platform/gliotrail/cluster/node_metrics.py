"""The workers' machines' load: `system/...` of each epoch, under MLflow's own names.

MLflow samples only the machine of the process that talks to it. Here the first worker on each
machine samples it; the workers exchange the samples, which go through the run's journal like every
metric.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psutil
import torch
from torch import Tensor

from gliotrail.runs.metric_keys import SYSTEM

EVERY_S: Final = 10.0
_MOST_GPUS: Final = 16
_OF_GPU: Final = ("memory_usage_megabytes", "memory_usage_percentage", "utilization_percentage",
                  "power_usage_watts", "power_usage_percentage")  # fmt: skip
_NAMES: Final = (
    "cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage",
    "disk_usage_percentage", "disk_usage_megabytes", "disk_available_megabytes",
    "network_receive_megabytes", "network_transmit_megabytes",
    *(f"gpu_{n}_{name}" for n in range(_MOST_GPUS) for name in _OF_GPU),
)  # fmt: skip
_ASK: Final = (
    "nvidia-smi",
    "--format=csv,noheader,nounits",
    "--query-gpu=memory.used,memory.total,utilization.gpu,power.draw,power.limit",
)


class _Samples:
    """This machine's samples since the last report: means; network totals since the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: list[dict[str, float]] = []
        network = psutil.net_io_counters()
        self._received, self._sent = network.bytes_recv, network.bytes_sent
        psutil.cpu_percent()  # the next call is about the time since

    def take(self) -> None:
        """Take one more sample."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
        network = psutil.net_io_counters()
        sample = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": (network.bytes_recv - self._received) / 1e6,
            "network_transmit_megabytes": (network.bytes_sent - self._sent) / 1e6,
            **_of_gpus(),
        }
        with self._lock:
            self._taken.append(sample)

    def tell(self) -> dict[str, float]:
        """The samples since the last call, at least one."""
        self.take()
        with self._lock:
            taken, self._taken = self._taken, []
        values_by_name = {name: [s[name] for s in taken if name in s] for name in taken[-1]}
        return {
            name: values[-1] if name.startswith("network_") else sum(values) / len(values)
            for name, values in values_by_name.items()
        }


@contextmanager
def sampling(
    rank: int,
    workers: int,
    node: int,
    is_first: bool,
    sum_in_place: Callable[[Tensor], object],
    device: torch.device,
    every_s: float = EVERY_S,
) -> Iterator[Callable[[], dict[str, float]]]:
    """Sample this machine while the block runs.

    Args:
        node: this machine's number among the workers'.
        is_first: whether this worker samples its machine.
        sum_in_place: sums a tensor on `device` over all workers.

    Yields:
        a function that returns all machines' metrics since its last call. All workers call it
        together.
    """
    samples, done = _Samples() if is_first else None, threading.Event()

    def sample() -> None:
        while samples and not done.wait(every_s):
            samples.take()

    def tell() -> dict[str, float]:
        # for each machine and metric: whether it has it, and its value
        table = torch.zeros(2, workers, len(_NAMES), dtype=torch.float64)
        for name, value in (samples.tell() if samples else {}).items():
            table[:, node, _NAMES.index(name)] = torch.tensor([1, value], dtype=torch.float64)
        on_device = table.to(device)
        sum_in_place(on_device)
        there, values = on_device.cpu()
        nodes = there.any(dim=1).nonzero().flatten().tolist()
        return {
            f"{SYSTEM}{f'node_{n}/' if len(nodes) > 1 else ''}{_NAMES[m]}": float(values[n, m])
            for n in nodes
            for m in there[n].nonzero().flatten().tolist()
        }

    thread = threading.Thread(target=sample, name=f"samples of rank {rank}", daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        done.set()
        thread.join()


def _of_gpus() -> dict[str, float]:
    """The output of NVIDIA's own tool for this machine's GPUs; empty without it."""
    if shutil.which(_ASK[0]) is None:
        return {}
    try:
        done = subprocess.run(_ASK, capture_output=True, text=True, check=False, timeout=EVERY_S)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return read_gpus(done.stdout) if done.returncode == 0 else {}


def read_gpus(table: str) -> dict[str, float]:
    """A line a GPU: memory used and total (MiB), utilisation (%), power and its limit (W).

    Values that a GPU doesn't report (`[N/A]`) are left out.
    """
    metrics: dict[str, float] = {}
    for n, line in enumerate(table.splitlines()[:_MOST_GPUS]):
        used, whole, busy, watts, most = (_number(cell) for cell in line.split(","))
        of = dict(zip(_OF_GPU, (
            used and used * 1.048576, _share(used, whole), busy, watts, _share(watts, most),
        ), strict=True))  # fmt: skip
        metrics |= {f"gpu_{n}_{name}": value for name, value in of.items() if value is not None}
    return metrics


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _share(part: float | None, whole: float | None) -> float | None:
    """The share in percent."""
    return None if part is None or not whole else part / whole * 100
