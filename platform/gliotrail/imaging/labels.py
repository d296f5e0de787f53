"""Label volumes: the codes in files to labels and back, masks and counts by label.

What the labels mean is the data set's own (see `dataset.task`): 0 is background, n the n-th class.
"""

from collections.abc import Mapping
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from gliotrail.dataset.task import IGNORED
from gliotrail.errors import DataError

Labels = npt.NDArray[np.uint8]
"""A volume of labels (I, J, K)."""

_ROUNDING: Final = 1e-3
"""How far a code may be from a whole number where a file scales its values."""


def to_labels(values: npt.NDArray[Any], codes: Mapping[int, int], where: object = None) -> Labels:
    """Values (I, J, K) of a label file as labels.

    Args:
        values: codes, up to rounding.
        codes: each code -> its label.

    Raises:
        DataError: a value that is no code, naming it.
    """
    whole = values
    if values.dtype.kind == "f":
        whole = np.rint(values)
        off = np.abs(values - whole) > _ROUNDING
        if off.any():
            raise _strange(values[off], codes, where)
    if not 0 <= whole.min() <= whole.max() <= 255:
        raise _strange(whole[(whole < 0) | (whole > 255)], codes, where)
    small: Labels = whole.astype(np.uint8, copy=False)
    there = np.flatnonzero(np.bincount(small.ravel(order="K"), minlength=256))
    if unknown := [code for code in there.tolist() if code not in codes]:
        raise _strange(np.array(unknown), codes, where)
    return _replaced(small, {code: codes[code] for code in there.tolist()})


def to_codes(labels: Labels, codes: Mapping[int, int], where: object = None) -> Labels:
    """Labels (I, J, K) as the codes of a file.

    Args:
        codes: each label -> its code.

    Raises:
        DataError: a label that has no code.
    """
    return to_labels(labels, codes, where)


def _replaced(values: Labels, by: Mapping[int, int]) -> Labels:
    if all(old == new for old, new in by.items()):
        return values
    table = np.zeros(256, np.uint8)
    for old, new in by.items():
        table[old] = new
    return table[values]


def _strange(values: npt.NDArray[Any], codes: Mapping[int, int], where: object) -> DataError:
    strange = dict.fromkeys(values.ravel()[:100_000].tolist())
    return DataError(
        "label values",
        where=where,
        wanted=f"among {', '.join(map(str, codes))}",
        got=", ".join(f"{v:.9g}" for v in list(strange)[:5]),
    )


@overload
def known_labels(labels: Labels) -> Labels: ...
@overload
def known_labels(labels: Labels | None) -> Labels | None: ...
def known_labels(labels: Labels | None) -> Labels | None:
    """Labels as pictures show them: what is ignored is background."""
    return None if labels is None else np.where(labels == IGNORED, np.uint8(0), labels)


def of_classes(labels: Labels) -> npt.NDArray[np.bool_]:
    """Where labels are of a class: neither background nor ignored."""
    found: npt.NDArray[np.bool_] = (labels > 0) & (labels != IGNORED)
    return found


def class_masks(labels: npt.NDArray[Any], n_classes: int) -> npt.NDArray[np.bool_]:
    """Labels (I, J, K) -> one mask a class (C, I, J, K), in their order."""
    return np.stack([labels == label for label in range(1, n_classes + 1)])


def voxels_per_label(labels: npt.NDArray[Any], n_classes: int) -> tuple[int, ...]:
    """How many voxels are background and of each class; ignored ones are not counted."""
    counts = np.bincount(labels.ravel(order="K"), minlength=IGNORED + 1)
    return tuple(int(n) for n in counts[: n_classes + 1])
