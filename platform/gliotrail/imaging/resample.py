"""From one spacing to another and back, along the scan's own axes.

Both grids have the same centre, so that a mirrored scan becomes the mirrored result. A new voxel is
the mean of old ones, weighted by a triangle as wide as the coarser of the two voxels: linear
interpolation where voxels get smaller, without aliasing where they get larger. Along the axis of
thick slices it is the nearest old one, as in nnU-Net (arXiv:1904.08128, supplement): there are no
data between slices.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gliotrail.imaging import geometry
from gliotrail.imaging.geometry import Affine, Vox3, vox3

Floats = npt.NDArray[np.float32]
_ANISOTROPIC: Final = 3.0
_MOSTLY: Final = 0.499  # share of a voxel in the body; not 0.5, which rounding would decide


def shape_at(
    shape_vox: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> Vox3:
    """How many voxels of `new_spacing_mm` cover the same volume, to the nearest."""
    sides = zip(shape_vox, spacing_mm, new_spacing_mm, strict=True)
    return vox3([max(1, round(n * length / new)) for n, length, new in sides])


def target_spacing(
    spacings_mm: Sequence[Sequence[float]], shapes_vox: Sequence[Sequence[int]]
) -> tuple[float, float, float]:
    """The median spacing of some scans; along an axis of thick slices the 10th percentile.

    The rule is nnU-Net's (arXiv:1904.08128, supplement): slices are thick if voxels are over 3
    times as long as along the other axes, and less than a third as many.
    """
    table_mm, sizes_vox = np.array(spacings_mm, float), np.array(shapes_vox, float)
    median_mm = np.median(table_mm, axis=0)
    size_vox = np.median(sizes_vox * table_mm, axis=0) / median_mm
    worst = int(median_mm.argmax())
    others = [axis for axis in range(3) if axis != worst]
    widest_mm = float(median_mm[others].max())
    thick = median_mm[worst] > _ANISOTROPIC * widest_mm
    if thick and size_vox[worst] * _ANISOTROPIC < size_vox[others].min():
        median_mm[worst] = max(float(np.percentile(table_mm[:, worst], 10)), widest_mm)
    i, j, k = (round(float(mm), 6) for mm in median_mm)
    return i, j, k


def affine_at(
    affine: Affine,
    shape_vox: Sequence[int],
    new_shape_vox: Sequence[int],
    new_spacing_mm: Sequence[float],
) -> Affine:
    """The affine of the grid with other voxels and the same centre."""
    scale = np.array(new_spacing_mm) / np.array(geometry.spacing_mm(affine))
    shift = (np.array(shape_vox) - 1) / 2 - scale * (np.array(new_shape_vox) - 1) / 2
    change = np.diag([*scale, 1.0])
    change[:3, 3] = shift
    return np.asarray(affine @ change)


def resample_scan(
    channels: Sequence[npt.NDArray[Any]],
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
) -> Floats:
    """Channels (I, J, K), air 0, on another grid (C, I, J, K): 0 outside the body."""
    shape_vox = shape_at(channels[0].shape, spacing_mm, new_spacing_mm)
    body_IJK = np.logical_or.reduce([channel != 0 for channel in channels])
    outside_IJK = resample(body_IJK, spacing_mm, shape_vox, new_spacing_mm) < _MOSTLY
    new_CIJK = np.empty((len(channels), *shape_vox), np.float32)
    for new_IJK, channel_IJK in zip(new_CIJK, channels, strict=True):
        new_IJK[:] = resample(channel_IJK, spacing_mm, shape_vox, new_spacing_mm)
        new_IJK[outside_IJK] = 0
    return new_CIJK


def resample_labels(
    labels_IJK: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    new_shape_vox: Sequence[int],
    new_spacing_mm: Sequence[float],
) -> npt.NDArray[np.uint8]:
    """Labels on another grid: each voxel gets the label with the largest share of it."""
    best_IJK = np.zeros(tuple(new_shape_vox), np.uint8)
    most_IJK = np.zeros(tuple(new_shape_vox), np.float32)
    for label in np.unique(labels_IJK).tolist():
        share_IJK = resample(labels_IJK == label, spacing_mm, new_shape_vox, new_spacing_mm)
        more = share_IJK > most_IJK
        best_IJK[more], most_IJK[more] = label, share_IJK[more]
    return best_IJK


def resample(
    image_IJK: npt.NDArray[Any],
    spacing_mm: Sequence[float],
    new_shape_vox: Sequence[int],
    new_spacing_mm: Sequence[float],
) -> Floats:
    """One channel on another grid of the same centre; outside, the border's values continue."""
    values = image_IJK.astype(np.float32)
    thick = thick_axis(spacing_mm)
    thick = thick_axis(new_spacing_mm) if thick is None else thick
    for axis in range(3):
        sides = values.shape[axis], spacing_mm[axis], new_shape_vox[axis], new_spacing_mm[axis]
        weights = _weights(*sides, nearest=axis == thick)
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return values


def to_scan_grid(
    probabilities_CIJK: Floats,
    spacing_mm: Sequence[float],
    scan_shape_vox: Sequence[int],
    scan_spacing_mm: Sequence[float],
) -> Floats:
    """A prediction back on its scan's own grid, in RAS+, where it is turned into labels.

    `geometry.from_ras` then turns the labels to the axes of the scan's file.
    """
    grids = spacing_mm, scan_shape_vox, scan_spacing_mm
    return np.stack([resample(p_IJK, *grids) for p_IJK in probabilities_CIJK])


def thick_axis(spacing_mm: Sequence[float]) -> int | None:
    """The axis along which voxels are over 3 times as long as along another, if it is just one."""
    longest = int(np.argmax(spacing_mm))
    if spacing_mm[longest] <= _ANISOTROPIC * min(spacing_mm):
        return None
    return longest if list(spacing_mm).count(spacing_mm[longest]) == 1 else None


def _weights(
    n: int, length_mm: float, new_n: int, new_length_mm: float, nearest: bool = False
) -> Floats:
    """The weight of each old voxel of a row in each new one (new, old); rows sum to 1.

    `nearest` takes one old voxel, or two that are equally near, so that a mirrored row gives the
    mirrored result.
    """
    at_mm = (np.arange(n) - (n - 1) / 2) * length_mm
    new_at_mm = (np.arange(new_n) - (new_n - 1) / 2) * new_length_mm
    inside_mm = np.clip(new_at_mm, at_mm[0], at_mm[-1])
    apart_mm = np.abs(inside_mm[:, None] - at_mm)
    weights = np.maximum(0, 1 - apart_mm / max(length_mm, new_length_mm))
    if nearest:
        least_mm = apart_mm.min(axis=1, keepdims=True)
        weights = (apart_mm < least_mm + 1e-6 * length_mm).astype(float)
    shares: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
