"""Whether workers compute on GPUs: GLIOTRAIL_GPUS, the cluster's machines, and its autoscaler.

Ray's resources decide what workers get; whether a card really computes is checked by its worker.
"""

import os
import re
import socket
from collections.abc import Callable
from typing import Final

import torch

from gliotrail.cluster.autoscaling import can_start_gpus
from gliotrail.cluster.connection import GPUS, WORKERS, is_own, nodes, total, whole_number
from gliotrail.errors import ClusterError, ParamsError
from gliotrail.progress import say

FORMER: Final = "GLIOTRAIL_TRIAL_GPUS"
MICRO_BATCH: Final = "GLIOTRAIL_MICRO_BATCH"
TEST_ON_CPU: Final = "GLIOTRAIL_TEST_GPU_IS_CPU"
"""For tests only: a worker with a logical GPU may compute on its CPU, by gloo."""


def gpus_wanted(trial_workers: int | None = None, variable: str = WORKERS) -> float | None:
    """GLIOTRAIL_GPUS, for each worker: 0, 1, a share of one, or None for `auto`.

    Args:
        trial_workers: how many workers of a sweep's trial sum gradients; 1 for tasks that sum
            none, None for a training outside a sweep.
        variable: the one that sets the number of workers, for messages.

    Raises:
        ParamsError: it is something else, or a share where several workers sum: NCCL refuses that.
    """
    if os.environ.get(FORMER):
        raise ParamsError(FORMER, wanted=f"{GPUS}, its new name", got=FORMER, do=f"set {GPUS}")
    text = os.environ.get(GPUS) or "auto"
    if text == "auto":
        return None
    if re.fullmatch("[2-9]|[1-9][0-9]+", text):
        do = f"for {text} GPUs set {variable}={text}"
        raise ParamsError(GPUS, wanted="1: each worker computes on one", got=text, do=do)
    if not re.fullmatch(r"[01]|0?\.[0-9]{1,4}", text) or (
        text not in {"0", "1"} and not float(text)
    ):
        raise ParamsError(GPUS, wanted="auto, 0, 1 or a share such as 0.5", got=repr(text))
    if text not in {"0", "1"} and trial_workers != 1:
        what = f"{trial_workers} workers a trial" if trial_workers else "a training"
        raise ParamsError(GPUS, wanted=f"auto, 0 or 1 for {what}", got=text)
    return float(text)


def decide(wanted: float | None, kind: str, look: Callable[[], object] = lambda: None) -> float:
    """The share of a GPU for each worker; prints which and why.

    Args:
        wanted: from `gpus_wanted`.
        kind: the stage, for the message: `train`.
        look: called each second while the autoscaler is asked; if it raises, that ends.
    """
    share, why = wanted, f"{GPUS}={os.environ.get(GPUS)}"
    if share is None:
        there = total(nodes(), "GPU")
        whose = "this machine" if is_own() else "the cluster"
        if there:
            share, why = 1.0, f"{whose} has {there}"
        elif not is_own() and can_start_gpus(look):
            share, why = 1.0, "the cluster starts machines with GPUs"
        else:
            share, why = 0.0, f"{whose} has no GPU" + ("" if is_own() else " and starts none")
    on = "CPUs" if not share else "GPUs" if share == 1 else f"{share:g} of a GPU each"
    say(f"{kind}: on {on}: {why}")
    return share


def device_of(
    share: float, find: Callable[[], torch.device] = lambda: torch.device("cuda", 0)
) -> torch.device:
    """The device of a worker with this share of a GPU.

    Args:
        find: finds its own GPU, if it sees others.

    Raises:
        ClusterError: Ray gave it a GPU, but PyTorch can't compute on it.
    """
    if not share:
        return torch.device("cpu")
    try:
        if not torch.cuda.is_available():
            raise RuntimeError(f"PyTorch {torch.__version__} finds no CUDA device")
        device = find()
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        if os.environ.get(TEST_ON_CPU):
            return torch.device("cpu")
        raise ClusterError(
            "a worker was given a GPU, and PyTorch can't compute on it",
            where=socket.gethostname(),
            got=str(error).partition("\n")[0],
            do=f"look at that machine's driver and PyTorch, or set {GPUS}=0",
        ) from None
    return device


def backend_of(share: float) -> str:
    """The backend that workers sum with."""
    return "nccl" if share and not os.environ.get(TEST_ON_CPU) else "gloo"


def micro_batch_wanted() -> int | None:
    """GLIOTRAIL_MICRO_BATCH: how many patches a worker computes at a time; None for `auto`.

    Raises:
        ParamsError: it is something else.
    """
    return None if os.environ.get(MICRO_BATCH) == "auto" else whole_number(MICRO_BATCH)
