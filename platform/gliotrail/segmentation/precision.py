"""The precision that a network computes in, and a device's peak speed at it."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gliotrail.param_types import Size

DTYPES: Final = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_PEAK_TFLOPS: Final[Mapping[str, Mapping[str, float]]] = {
    "A100": {"float32": 19.5, "tf32": 156, "half": 312},
    "H100 PCIe": {"float32": 51, "tf32": 378, "half": 756},
    "H100": {"float32": 67, "tf32": 494.5, "half": 989},
    "H200": {"float32": 67, "tf32": 494.5, "half": 989},
    "L40S": {"float32": 91.6, "tf32": 183, "half": 362},
    "V100-SXM2": {"float32": 15.7, "half": 125},
    "T4": {"float32": 8.1, "half": 65},
}
"""Dense, from NVIDIA's data sheets, by a part of the device's name; the first match counts."""


@contextmanager
def convolutions_in(precision: str) -> Iterator[None]:
    """Let cuDNN use TF32 for float32, PyTorch's default, only where the precision is `tf32`.

    TF32 has a mantissa of 10 bits, float32 of 23.
    """
    of_cudnn, of_matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    on = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = of_cudnn
        torch.backends.cuda.matmul.allow_tf32 = of_matmul


def peak_flops(device_name: str, precision: str) -> float | None:
    """The device's peak operations a second; None if it is not in the table."""
    kind = "half" if precision in {"bfloat16", "float16"} else precision
    for name, peaks in _PEAK_TFLOPS.items():
        if all(part in device_name for part in name.split()):
            return peaks[kind] * 1e12 if kind in peaks else None
    return None


def gpu_metrics(
    model: nn.Module,
    size_vox: Size,
    samples: float,
    precision: str,
    device: torch.device,
    step_s: float,
) -> dict[str, float]:
    """An epoch's peak memory, and the share of the device's peak FLOPS that training reaches.

    Args:
        samples: of one step, on this device.
        step_s: what a step takes.

    Returns:
        metrics by their names; none where the device is no GPU.
    """
    if device.type != "cuda":
        return {}
    metrics = {"train/peak_gpu_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    torch.cuda.reset_peak_memory_stats(device)
    peak = peak_flops(torch.cuda.get_device_name(device), precision)
    if peak:
        metrics["train/mfu"] = samples * training_flops(model, size_vox) / step_s / peak
    return metrics


@lru_cache(maxsize=1)
def training_flops(model: nn.Module, size_vox: Size) -> int:
    """FLOPs of one sample's forward and backward pass: counted, not computed."""
    counted = copy.deepcopy(model).to("meta")
    channels = next(p.shape[1] for p in counted.parameters() if p.ndim == 5)
    with FlopCounterMode(display=False) as counter:
        counted(torch.empty(1, channels, *size_vox, device="meta")).sum().backward()
    return int(counter.get_total_flops())
