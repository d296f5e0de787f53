"""Channels, classes and nested regions of a brain tumour, and the label codes of three schemes.

Everywhere inside Gliotrail labels are the Decathlon's (`msd`): 0 background, 1 edema,
2 non-enhancing tumour, 3 enhancing tumour; channels are FLAIR, T1w, T1gd, T2w, in this order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gliotrail.errors import DataError

CHANNELS = ("FLAIR", "T1w", "T1gd", "T2w")
CLASSES = ("edema", "non_enhancing", "enhancing")
"""CLASSES[c] has the label c + 1."""
REGIONS: Mapping[str, tuple[int, ...]] = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
"""Whole tumour, tumour core, enhancing tumour: nested, as label codes."""

Labels = npt.NDArray[np.uint8]
"""A volume of labels (I, J, K)."""

SCHEMES: Mapping[str, Mapping[int, int]] = {
    "msd": {0: 0, 1: 1, 2: 2, 3: 3},
    "brats21": {0: 0, 1: 2, 2: 1, 4: 3},
    "brats23": {0: 0, 1: 2, 2: 1, 3: 3},
}
"""Each scheme's codes -> the Decathlon's. Verified on BRATS_001 to 003 (data provenance)."""

_CHANNEL_NAMES = {
    "flair": "FLAIR", "t2f": "FLAIR",
    "t1w": "T1w", "t1": "T1w", "t1n": "T1w",
    "t1gd": "T1gd", "t1ce": "T1gd", "t1c": "T1gd", "t1post": "T1gd",
    "t2w": "T2w", "t2": "T2w",
}  # fmt: skip


def channel_name(name: str, where: object = None) -> str:
    """The standard name of a channel: `t1ce`, `T1gd` and `t1c` are all T1gd.

    Raises:
        DataError: a name that no scheme uses.
    """
    standard = _CHANNEL_NAMES.get(name.strip().lower())
    if standard is None:
        wanted = f"one of {', '.join(CHANNELS)}"
        raise DataError("channel name", where=where, wanted=wanted, got=repr(name))
    return standard


def channel_order(names: Sequence[str], where: object = None) -> tuple[int, ...]:
    """Where each of CHANNELS is found in `names`.

    Raises:
        DataError: a channel is missing, doubled or unknown.
    """
    standard = [channel_name(name, where) for name in names]
    if sorted(standard) != sorted(CHANNELS):
        raise DataError(
            "channels", where=where, wanted=", ".join(CHANNELS), got=", ".join(map(str, names))
        )
    return tuple(standard.index(channel) for channel in CHANNELS)


def check_codes(labels: npt.NDArray[Any], where: object = None, scheme: str = "msd") -> None:
    """Refuse label values that the scheme doesn't have.

    Raises:
        DataError: naming the values.
    """
    values = np.unique(labels)
    strange = [v for v in values.tolist() if v not in SCHEMES[scheme]]
    if strange:
        raise DataError(
            "label values",
            where=where,
            wanted=f"among {', '.join(map(str, SCHEMES[scheme]))} ({scheme})",
            got=", ".join(f"{v:g}" for v in strange[:5]),
        )


def to_msd(labels: npt.NDArray[Any], scheme: str, where: object = None) -> Labels:
    """Labels (I, J, K) of a scheme as the Decathlon's.

    Raises:
        DataError: a value that the scheme doesn't have.
    """
    check_codes(labels, where, scheme)
    table = np.zeros(256, np.uint8)
    for code, msd in SCHEMES[scheme].items():
        table[code] = msd
    return table[labels.astype(np.uint8)]


def from_msd(labels: Labels, scheme: str) -> Labels:
    """The Decathlon's labels (I, J, K) as a scheme's codes."""
    table = np.zeros(4, np.uint8)
    for code, msd in SCHEMES[scheme].items():
        table[msd] = code
    return table[labels]


def class_masks(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Labels (I, J, K) -> one mask a class (3, I, J, K), in the order of CLASSES."""
    return np.stack([labels == label for label in range(1, len(CLASSES) + 1)])


def voxels_per_label(labels: npt.NDArray[Any]) -> tuple[int, ...]:
    """How many voxels have the labels 0, 1, 2, 3."""
    counts = np.bincount(labels.ravel(order="K"), minlength=len(CLASSES) + 1)
    return tuple(int(n) for n in counts)
