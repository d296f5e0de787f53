"""Optimizers, their learning rate, and the moving average of the weights."""

from typing import Final

import torch
from torch import nn

_MOMENTUM: Final = 0.99
REMEMBERED: Final = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""Each optimizer's state of a weight, by PyTorch's names."""


def optimizer_of(
    name: str, trained: list[nn.Parameter], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101), or SGD with Nesterov's momentum as nnU-Net has it."""
    if name == "adamw":
        return torch.optim.AdamW(trained, weight_decay=weight_decay)
    return torch.optim.SGD(trained, momentum=_MOMENTUM, nesterov=True, weight_decay=weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set it for all weights; the schedule is `loop.Plan.learning_rate_at`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def average_into(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights, quick at first (Polyak and Juditsky, 1992)."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, share)
