"""Losses of training: one value per sample, so that any split of a batch averages the same.

Tensors are (B, C, I, J, K): sample, class, left-right, posterior-anterior, inferior-superior.
Sums run over the three spatial axes, per sample and class; then the mean over classes; last the
mean over samples. The soft Dice loss has squares in its denominator (Milletari et al., 2016,
arXiv:1606.04797); the Dice coefficient in `metrics` has none.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

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


LOSSES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = MappingProxyType(
    {"soft_dice": _soft_dice_from_logits, "dice_ce": _dice_ce_from_logits}
)
"""`train.loss` -> (logits, targets), both (B, C, I, J, K), -> one loss a sample (B,)."""
