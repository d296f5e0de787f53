"""Losses of training: one value per sample, so that any split of a batch averages the same.

Tensors are (B, C, I, J, K): sample, class, left-right, posterior-anterior, inferior-superior.
Sums run over the three spatial axes, per sample and class; then the mean over classes; last the
mean over samples. The soft Dice loss has squares in its denominator (Milletari et al., 2016,
arXiv:1606.04797); the Dice coefficient in `metrics` has none.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gliotrail.errors import ParamsError
from gliotrail.own_parts import is_own, own_part, short_name, tried
from gliotrail.segmentation.metrics import EPS, SPATIAL


def soft_dice(probabilities_BCIJK: Tensor, targets_BCIJK: Tensor, eps: float = EPS) -> Tensor:
    """(2 sum(y p) + eps) / (sum(y^2) + sum(p^2) + eps) per sample and class (B, C)."""
    p, y = _at_least_float32(probabilities_BCIJK), _at_least_float32(targets_BCIJK)
    overlap_BC = (y * p).sum(SPATIAL)
    size_BC = y.square().sum(SPATIAL) + p.square().sum(SPATIAL)
    return (2 * overlap_BC + eps) / (size_BC + eps)


def soft_dice_loss(probabilities_BCIJK: Tensor, targets_BCIJK: Tensor, eps: float = EPS) -> Tensor:
    """1 - soft Dice, mean over classes, then over samples: one number."""
    return 1 - soft_dice(probabilities_BCIJK, targets_BCIJK, eps).mean(1).mean()


def _soft_dice_from_logits(logits_BCIJK: Tensor, targets_BCIJK: Tensor) -> Tensor:
    probabilities_BCIJK = _at_least_float32(logits_BCIJK).sigmoid()
    return 1 - soft_dice(probabilities_BCIJK, targets_BCIJK).mean(1)


def _dice_ce_from_logits(logits_BCIJK: Tensor, targets_BCIJK: Tensor) -> Tensor:
    """Soft Dice loss plus binary cross-entropy, the latter's mean over classes and voxels."""
    logits = _at_least_float32(logits_BCIJK)
    cross_entropy = binary_cross_entropy_with_logits(
        logits, targets_BCIJK.to(logits.dtype), reduction="none"
    )
    return _soft_dice_from_logits(logits, targets_BCIJK) + cross_entropy.flatten(1).mean(1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Float64 stays; all else becomes float32: half precision can't hold a sum over a patch."""
    return tensor if tensor.is_floating_point() and tensor.element_size() == 8 else tensor.float()


Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, targets), both (B, C, I, J, K), to one loss a sample (B,).

Targets are 0 or 1. Where the truth is unknown, logits are -30 and targets 0. With half precision
the logits are in half precision, too.
"""
LOSSES: Final[Mapping[str, Loss]] = MappingProxyType(
    {"soft_dice": _soft_dice_from_logits, "dice_ce": _dice_ce_from_logits}
)
"""By their names in `train.loss`."""


def loss_named(name: str) -> Loss:
    """The loss that `train.loss` names, ours or yours.

    Raises:
        ParamsError: as `own_part`.
    """
    found: Loss = own_part(name, "train.loss") if is_own(name) else LOSSES[name]
    return found


def loss_key(name: str) -> str:
    """A loss's name in MLflow: `soft_dice_loss`; `tversky_loss` for `my_losses:tversky`."""
    return f"{short_name(name).removesuffix('_loss')}_loss"


def check_loss(name: str) -> None:
    """Try a loss of your own on two samples of two classes.

    Raises:
        ParamsError: it doesn't give one number a sample, or no gradient.
    """
    if not is_own(name):
        return
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 2, 4, 4, 4), generator=generator).requires_grad_()
    targets = (torch.rand(logits.shape, generator=generator) < 0.5).float()
    what, wanted = f"train.loss: {name}", "(logits, targets) to one finite loss a sample, (2,) of 2"
    loss = loss_named(name)
    with tried(what, wanted):
        values = loss(logits, targets)
        values.sum().backward()
        finite = bool(values.isfinite().all())
    if tuple(values.shape) != (2,) or not finite:
        got = f"{tuple(values.shape)}{'' if finite else ', not finite'}"
        raise ParamsError(what, wanted=wanted, got=got)
