"""Names and codes of brain tumours, as the tests of their scans spell them."""

from typing import Any

import numpy as np

from gliotrail.dataset.brats import BRATS, COLOURS, SCHEMES
from gliotrail.imaging import labels as volumes

CHANNELS = BRATS.channel_names
CLASSES = BRATS.class_names
REGIONS = BRATS.region_labels
CLASS_LABELS = BRATS.class_labels
N_LABELS = BRATS.n_labels
CLASS_COLOURS = {name: COLOURS[name] for name in CLASSES}
REGION_COLOURS = {name: COLOURS[name] for name in REGIONS}


def from_msd(labels: Any, scheme: str) -> Any:
    """Labels as a scheme's codes."""
    codes = {label: code for code, label in SCHEMES[scheme].items()}
    return volumes.to_codes(np.asarray(labels, np.uint8), codes)


def to_msd(codes: Any, scheme: str) -> Any:
    """A scheme's codes as labels."""
    return volumes.to_labels(codes, SCHEMES[scheme])


def class_masks(labels: Any) -> Any:
    """A mask a class."""
    return volumes.class_masks(labels, len(CLASSES))


def voxels_per_label(labels: Any) -> tuple[int, ...]:
    """Of background and the three classes."""
    return volumes.voxels_per_label(labels, len(CLASSES))
