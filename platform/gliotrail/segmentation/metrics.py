"""Dice, sensitivity and specificity, of probability tensors and of label volumes.

Tensors are (B, C, I, J, K): sample, class, left-right, posterior-anterior, inferior-superior.
Label volumes are (I, J, K): 0, the places of the data set's classes, and IGNORED where the truth is
unknown; such voxels are not counted. Each class and each region is a set of labels, and TP, FP, FN,
TN of all of them come from one confusion matrix of labels.

Counts need no epsilon. Where truth or prediction is empty, this is the rule:

| truth | prediction | Dice | sensitivity | surface Dice | HD95 |
|---|---|---|---|---|---|
| empty | empty | undefined | undefined | undefined | undefined |
| empty | some | 0 | undefined | 0 | undefined |
| some | empty | 0 | 0 | 0 | undefined |

Undefined is None (NaN in a tensor), never a 0 or 1. Specificity is undefined only where the truth
fills the grid. A mean is over the defined values alone, and always comes with their number, `n`;
the classes and regions that were empty are named beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gliotrail.dataset.task import IGNORED
from gliotrail.errors import DataError
from gliotrail.imaging.labels import Labels

if TYPE_CHECKING:  # nothing here needs torch at run time, so that scoring files starts fast
    from torch import Tensor

SPATIAL: Final = (2, 3, 4)
EPS: Final = 1e-5
_BLOCK_VOXELS: Final = 2**19
_FEW: Final = 4
"""As many labels fit into two bits, and are counted several times as fast."""
_CODE_BITS: Final = np.uint64(0x0303_0303_0303_0303)  # of eight labels
_EVERY_SECOND: Final = np.uint64(0x00FF_00FF_00FF_00FF)


def dice_coefficient(
    probabilities_BCIJK: Tensor,
    targets_BCIJK: Tensor,
    eps: float = EPS,
    threshold: float | None = 0.5,
) -> Tensor:
    """(2 sum(y p) + eps) / (sum(y) + sum(p) + eps) per sample and class (B, C).

    p is whether the probability is above `threshold`; with None it is the probability itself.
    A sample's Dice coefficient is the mean over its classes.
    """
    p, y = probabilities_BCIJK, targets_BCIJK.double()
    p = (p if threshold is None else p > threshold).double()
    return (2 * (y * p).sum(SPATIAL) + eps) / (y.sum(SPATIAL) + p.sum(SPATIAL) + eps)


def sensitivity(
    probabilities_BCIJK: Tensor, targets_BCIJK: Tensor, threshold: float = 0.5
) -> Tensor:
    """TP / (TP + FN) per sample and class (B, C); NaN where the truth is empty. Also: recall."""
    truth, found = targets_BCIJK > 0.5, probabilities_BCIJK > threshold
    return (truth & found).sum(SPATIAL).double() / truth.sum(SPATIAL)


def specificity(
    probabilities_BCIJK: Tensor, targets_BCIJK: Tensor, threshold: float = 0.5
) -> Tensor:
    """TN / (TN + FP) per sample and class (B, C); NaN where the truth is everywhere."""
    free, found = targets_BCIJK <= 0.5, probabilities_BCIJK > threshold
    return (free & ~found).sum(SPATIAL).double() / free.sum(SPATIAL)


@dataclass(frozen=True)
class Counts:
    """Voxels of one class or region: true and false positives, false and true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def ref(self) -> int:
        """Voxels of the truth."""
        return self.tp + self.fn

    @property
    def pred(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def dice(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None where truth and prediction are empty."""
        return _ratio(2 * self.tp, self.ref + self.pred)

    @property
    def sensitivity(self) -> float | None:
        """TP / (TP + FN); None where the truth is empty."""
        return _ratio(self.tp, self.ref)

    @property
    def specificity(self) -> float | None:
        """TN / (TN + FP); None where the truth is everywhere."""
        return _ratio(self.tn, self.tn + self.fp)


def confusion(
    ref_IJK: Labels,
    pred_IJK: Labels,
    n_labels: int,
    where_IJK: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """How many voxels have the label r in the truth and p in the prediction, as [r, p].

    One pass in blocks that fit into a cache: the volumes may be memory-mapped. With `where_IJK`,
    only voxels inside it count. Those that the truth ignores never do.

    Args:
        n_labels: how many there are, background included.

    Raises:
        DataError: shapes differ, or a label is none of them.
    """
    for name, other in (("prediction", pred_IJK), ("mask", where_IJK)):
        if other is not None and other.shape != ref_IJK.shape:
            raise DataError(f"shape of the {name}", wanted=ref_IJK.shape, got=other.shape)
    if ref_IJK.strides[0] < ref_IJK.strides[-1]:  # the slowest axis first: blocks lie together
        ref_IJK, pred_IJK = ref_IJK.T, pred_IJK.T
        where_IJK = None if where_IJK is None else where_IJK.T
    if ref_IJK.max(initial=0) == IGNORED:
        known_IJK = ref_IJK != IGNORED
        where_IJK = known_IJK if where_IJK is None else where_IJK & known_IJK
        ref_IJK = np.where(known_IJK, ref_IJK, np.uint8(0))
    if n_labels > _FEW:
        return _confusion_of_many(ref_IJK, pred_IJK, n_labels, where_IJK)
    counts = np.zeros(_FEW**2, np.int64)
    step = max(1, _BLOCK_VOXELS // max(1, ref_IJK[:1].size))
    for start in range(0, len(ref_IJK), step):
        block = slice(start, start + step)
        ref = _eights(ref_IJK[block], "truth", n_labels)
        pred = _eights(pred_IJK[block], "prediction", n_labels)
        counted = ref_IJK[block].size
        wanted = (ref | pred) != 0
        ref, pred = ref[wanted], pred[wanted]
        if ((ref | pred) & ~_CODE_BITS).any():
            _check(ref_IJK, "truth", n_labels)
            _check(pred_IJK, "prediction", n_labels)
        if where_IJK is not None:
            counted = int(np.count_nonzero(where_IJK[block]))
            inside = _eights(where_IJK[block], "mask", n_labels)[wanted] * np.uint64(255)
            ref, pred = ref & inside, pred & inside
        joint = ref << np.uint64(2) | pred
        joint |= joint >> np.uint64(4)  # two voxels in every second byte
        pairs = (joint & _EVERY_SECOND).view(np.uint16)
        of_pairs = np.bincount(pairs, minlength=_FEW**4).reshape(_FEW**2, _FEW**2)
        counts += of_pairs.sum(axis=0) + of_pairs.sum(axis=1)
        counts[0] += counted - 8 * len(joint)
    table = counts.reshape(_FEW, _FEW)
    if table[n_labels:].any() or table[:, n_labels:].any():
        _check(ref_IJK, "truth", n_labels)
        _check(pred_IJK, "prediction", n_labels)
    return table[:n_labels, :n_labels]


def _confusion_of_many(
    ref_IJK: Labels,
    pred_IJK: Labels,
    n_labels: int,
    where_IJK: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.int64]:
    """Like `confusion`, for any number of labels."""
    _check(ref_IJK, "truth", n_labels)
    _check(pred_IJK, "prediction", n_labels)
    counts = np.zeros(n_labels**2, np.int64)
    for place, (ref, pred) in enumerate(zip(ref_IJK, pred_IJK, strict=True)):
        joint = ref.astype(np.int64) * n_labels + pred
        if where_IJK is not None:
            joint = joint[where_IJK[place]]
        counts += np.bincount(joint.ravel(), minlength=n_labels**2)
    return counts.reshape(n_labels, n_labels)


def counts_of(confusion_rp: npt.NDArray[np.int64], labels: Iterable[int]) -> Counts:
    """The counts of a class or region, given as its labels, from the table of `confusion`."""
    own = list(labels)
    ref, tp = int(confusion_rp[own].sum()), int(confusion_rp[own][:, own].sum())
    pred, voxels = int(confusion_rp[:, own].sum()), int(confusion_rp.sum())
    return Counts(tp, fp=pred - tp, fn=ref - tp, tn=voxels - ref - pred + tp)


class Mean(NamedTuple):
    """A mean over the defined values, and their number; None if there are none."""

    value: float | None
    n: int


def mean_defined(values: Iterable[float | None]) -> Mean:
    """The mean of all that is not None."""
    defined = [value for value in values if value is not None]
    return Mean(_ratio(sum(defined), len(defined)), len(defined))


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _eights(labels: npt.NDArray[Any], name: str, n_labels: int) -> npt.NDArray[np.uint64]:
    """Eight voxels in each number, the last filled up with 0."""
    if labels.dtype.itemsize > 1 or labels.dtype.kind == "i":
        _check(labels, name, n_labels)
    flat = labels.ravel().astype(np.uint8, copy=False)
    short = -len(flat) % 8
    return (np.pad(flat, (0, short)) if short else flat).view(np.uint64)


def _check(labels: npt.NDArray[Any], name: str, n_labels: int) -> None:
    low, high = labels.min(initial=0), labels.max(initial=0)
    if low < 0 or not high < n_labels:
        wanted = ", ".join(map(str, range(n_labels)))
        raise DataError(f"labels of the {name}", wanted=wanted, got=f"{low} to {high}")


def soft_dice_loss_scan(
    probabilities_CIJK: npt.NDArray[np.floating[Any]], labels_IJK: Labels, eps: float = EPS
) -> float:
    """The soft Dice loss of a whole scan: 1 - mean over classes, as `losses.soft_dice_loss`.

    Sums are float64, a slice at a time: the probabilities may be memory-mapped. Voxels that the
    truth ignores are left out.

    Raises:
        DataError: the shapes don't fit.
    """
    n_classes = len(probabilities_CIJK)
    wanted = (n_classes, *labels_IJK.shape)
    if probabilities_CIJK.shape != wanted:
        raise DataError("shape of the probabilities", wanted=wanted, got=probabilities_CIJK.shape)
    overlap_C, size_C = np.zeros(n_classes), np.zeros(n_classes)
    codes_C11 = np.arange(1, n_classes + 1)[:, None, None]
    ignores = labels_IJK.max(initial=0) == IGNORED
    for i in range(len(labels_IJK)):
        p_CJK = probabilities_CIJK[:, i].astype(np.float64)
        if ignores:
            p_CJK = p_CJK * (labels_IJK[i] != IGNORED)
        y_CJK = labels_IJK[i] == codes_C11
        overlap_C += (p_CJK * y_CJK).sum(axis=(1, 2))
        size_C += y_CJK.sum(axis=(1, 2)) + np.square(p_CJK).sum(axis=(1, 2))
    return 1 - float(((2 * overlap_C + eps) / (size_C + eps)).mean())
