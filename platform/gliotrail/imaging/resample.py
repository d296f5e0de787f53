"""From one spacing to another and back, along the scan's own axes.

Both grids have the same centre, so that a mirrored scan becomes the mirrored result. A new voxel is
the mean of old ones, weighted by a triangle as wide as the coarser of the two voxels: linear
interpolation where voxels get smaller, without aliasing where they get larger.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gliotrail.imaging.geometry import Vox3, vox3

Floats = npt.NDArray[np.float32]


def shape_at(
    shape_vox: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> Vox3:
    """How many voxels of `new_spacing_mm` cover what these voxels cover, to the nearest."""
    sides = zip(shape_vox, spacing_mm, new_spacing_mm, strict=True)
    return vox3([max(1, round(n * length / new)) for n, length, new in sides])


def resample(
    image_IJK: npt.NDArray[Any],
    spacing_mm: Sequence[float],
    new_shape_vox: Sequence[int],
    new_spacing_mm: Sequence[float],
) -> Floats:
    """One channel on another grid of the same centre; the border's values go on outside."""
    values = image_IJK.astype(np.float32)
    for axis in range(3):
        weights = _weights(
            values.shape[axis], spacing_mm[axis], new_shape_vox[axis], new_spacing_mm[axis]
        )
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return values


def _weights(n: int, length_mm: float, new_n: int, new_length_mm: float) -> Floats:
    """What each old voxel of a row gives to each new one (new, old); rows sum to 1."""
    at_mm = (np.arange(n) - (n - 1) / 2) * length_mm
    new_at_mm = (np.arange(new_n) - (new_n - 1) / 2) * new_length_mm
    inside_mm = np.clip(new_at_mm, at_mm[0], at_mm[-1])
    apart_mm = np.abs(inside_mm[:, None] - at_mm)
    weights = np.maximum(0, 1 - apart_mm / max(length_mm, new_length_mm))
    shares: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
