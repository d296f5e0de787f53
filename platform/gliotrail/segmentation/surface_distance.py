"""Distances between two surfaces: HD95 and surface Dice, in mm, for any spacing.

Each measure defines surfaces as the tool does that its numbers are compared with:

- HD95 is MONAI's: surface voxels are those of a mask with one of their six face neighbours
  outside it (beyond the volume all is outside), each counted once; distances between voxel
  centres; the larger of the two directed 95th percentiles, interpolated linearly.
- Surface Dice is that of Nikolov et al. (arXiv:1809.04430), as in DeepMind's surface-distance:
  surface points are where eight voxels meet that are not all inside or all outside, each weighted
  by the area of the marching-cubes surface between those eight; distances between such points;
  the share of both surfaces' area that lies within the tolerance of the other surface.

Only surface points are compared (a k-d tree), in the box of both masks: there is no distance map of
the volume.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from gliotrail.errors import DataError
from gliotrail.imaging.geometry import Box, Vox3, vox3

Mask = npt.NDArray[np.bool_]
"""A volume (I, J, K)."""
Floats = npt.NDArray[np.float64]
Spacing = Sequence[float] | Floats
"""Length of a voxel along i, j, k."""

_CORNERS: Final = tuple(vox3(corner) for corner in product((0, 1), repeat=3))
"""The voxels around a point; the code of a neighbourhood has bit b where _CORNERS[b] is inside."""

_NEAR: Final = 3
"""Distance in voxels that is searched step by step, without a tree: most of a surface is near."""


def hd95_mm(ref_IJK: Mask, pred_IJK: Mask, spacing_mm: Spacing) -> float | None:
    """The 95th percentile of surface distances, the larger of the two directions.

    Returns:
        mm, or None where a mask is empty.

    Raises:
        DataError: shapes differ, or the spacing is not three lengths.
    """
    ref, pred, spacing = _cropped(ref_IJK, pred_IJK, spacing_mm)
    if not (ref.any() and pred.any()):
        return None
    surfaces = [mask & ~_inner(mask) for mask in (ref, pred)]
    there, back = (_distances_mm(a, b, spacing) for a, b in (surfaces, surfaces[::-1]))
    return max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))


def surface_dice(
    ref_IJK: Mask, pred_IJK: Mask, spacing_mm: Spacing, tolerance_mm: float
) -> float | None:
    """The share of both surfaces' area within `tolerance_mm` of the other surface.

    Returns:
        0 to 1; 0 where one mask is empty, None where both are.

    Raises:
        DataError: shapes differ, or the spacing is not three lengths.
    """
    ref, pred, spacing = _cropped(ref_IJK, pred_IJK, spacing_mm)
    if not (ref.any() and pred.any()):
        return 0.0 if ref.any() or pred.any() else None
    area_of_code = areas_mm2(spacing)
    codes = [_neighbour_codes(mask) for mask in (ref, pred)]
    surfaces = [(code != 0) & (code != 255) for code in codes]
    near_mm2 = whole_mm2 = 0.0
    for here in (0, 1):
        area_mm2 = area_of_code[codes[here][surfaces[here]]]
        distance_mm = _distances_mm(surfaces[here], surfaces[1 - here], spacing)
        near_mm2 += float(area_mm2[distance_mm <= tolerance_mm].sum())
        whole_mm2 += float(area_mm2.sum())
    return near_mm2 / whole_mm2


def areas_mm2(spacing_mm: Spacing) -> Floats:
    """The area of the marching-cubes surface in each of the 256 neighbourhoods (256,)."""
    si, sj, sk = spacing_mm
    face_mm2 = np.array([sj * sk, si * sk, si * sj])
    return np.asarray(np.sqrt(np.square(_normals_of_codes() * face_mm2).sum(axis=2)).sum(axis=1))


@cache
def _normals_of_codes() -> Floats:
    """The triangles of each neighbourhood, as normals of length area at unit spacing (256, 4, 3).

    The surface separates the rarer kind of voxel (inside or outside) from the other: around each
    connected group, through the middle of each cut edge. So inside and outside can be exchanged:
    the neighbourhood 255 - code has the same areas. None has over four triangles.
    """
    normals = np.zeros((256, 4, 3))
    for code in range(1, 128):
        inside = {corner for bit, corner in enumerate(_CORNERS) if code >> bit & 1}
        rarer = inside if len(inside) <= 4 else set(_CORNERS) - inside
        triangles = [normal for group in _groups(rarer) for normal in _widest(_polygon(group))]
        normals[code, : len(triangles)] = normals[255 - code, : len(triangles)] = triangles
    return normals


def _groups(corners: set[Vox3]) -> list[set[Vox3]]:
    """Corners in groups connected along the cube's edges."""
    groups: list[set[Vox3]] = []
    for corner in corners:
        near = [group for group in groups if any(_are_neighbours(corner, c) for c in group)]
        groups = [group for group in groups if group not in near] + [{corner}.union(*near)]
    return groups


def _polygon(group: set[Vox3]) -> Floats:
    """The middles of the edges that leave a group, in their order along the surface (n, 3).

    A group has at most four corners, so that each face of the cube is crossed once or not at all:
    the next point is the one on the same face.
    """
    left = [
        (np.array(a) + b) / 2
        for a in sorted(group)
        for b in _CORNERS
        if b not in group and _are_neighbours(a, b)
    ]
    path = [left.pop()]
    while left:
        on_a_face = [((p == path[-1]) & (p != 0.5)).any() for p in left]
        path.append(left.pop(on_a_face.index(True)))
    return np.array(path)


def _widest(polygon: Floats) -> Floats:
    """The normals of the triangulation that has the largest area (n - 2, 3).

    Only two of the polygons are bent (around three voxels in an L, and a chain of four), so the
    choice matters only there. surface-distance's table has the largest area in all 256
    neighbourhoods (measured: tests/segmentation/test_peers.py). Ties are ties at every spacing.
    """
    if len(polygon) < 3:
        return np.zeros((0, 3))
    first, last = polygon[0], polygon[-1]
    ways = [
        np.concatenate([
            np.cross(polygon[m] - first, last - first)[None] / 2,
            _widest(polygon[: m + 1]),
            _widest(polygon[m:]),
        ])
        for m in range(1, len(polygon) - 1)
    ]  # fmt: skip
    return max(ways, key=lambda normals: float(_length(normals).sum()))


def _are_neighbours(a: Vox3, b: Vox3) -> bool:
    return sum(p != q for p, q in zip(a, b, strict=True)) == 1


def _length(vectors: Floats) -> Floats:
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=1)))


def _neighbour_codes(mask_IJK: Mask) -> npt.NDArray[np.uint8]:
    """The code of the eight voxels around each voxel corner (I + 1, J + 1, K + 1)."""
    padded = np.pad(mask_IJK, 1).astype(np.uint8)
    shape = vox3([n + 1 for n in mask_IJK.shape])
    codes = np.zeros(shape, np.uint8)
    for bit, corner in enumerate(_CORNERS):
        codes |= padded[Box.at(corner, shape).slices] << np.uint8(bit)
    return codes


def _distances_mm(here_IJK: Mask, there_IJK: Mask, spacing_mm: Floats) -> Floats:
    """From each True of `here`, in C order, to the nearest True of `there` (n,)."""
    # from whole voxels, so that a distance does not depend on where in the volume it lies
    steps_vox, steps_mm = _near(tuple(spacing_mm.tolist()))
    there = np.pad(there_IJK, _NEAR)
    flat, strides = there.ravel(), np.array(there.strides)
    at = np.flatnonzero(np.pad(here_IJK, _NEAR))
    distances_mm, left = np.zeros(len(at)), np.arange(len(at))
    for step, length_mm in zip((steps_vox @ strides).tolist(), steps_mm.tolist(), strict=True):
        found = flat[at + step]
        distances_mm[left[found]] = length_mm
        left, at = left[~found], at[~found]
    if len(at):
        from_vox, to_vox = np.stack(np.unravel_index(at, there.shape), 1), np.argwhere(there)
        _, nearest = cKDTree(to_vox * spacing_mm).query(from_vox * spacing_mm)
        distances_mm[left] = _length((from_vox - to_vox[nearest]) * spacing_mm)
    return distances_mm


@cache
def _near(spacing_mm: tuple[float, ...]) -> tuple[npt.NDArray[np.intp], Floats]:
    """All steps up to _NEAR times a voxel's shortest side, shortest first: voxels, mm."""
    steps_vox = np.array(list(product(range(-_NEAR, _NEAR + 1), repeat=3)), np.intp)
    steps_mm = _length(steps_vox * np.array(spacing_mm))
    order = np.argsort(steps_mm, kind="stable")
    order = order[steps_mm[order] <= _NEAR * min(spacing_mm)]
    return steps_vox[order], steps_mm[order]


def _inner(mask_IJK: Mask) -> Mask:
    """Where a voxel and its six face neighbours are inside."""
    padded, inner = np.pad(mask_IJK, 1), mask_IJK.copy()
    for axis in range(3):
        for start in (0, 2):
            corner = [1, 1, 1]
            corner[axis] = start
            inner &= padded[Box.at(corner, mask_IJK.shape).slices]
    return inner


def _cropped(ref_IJK: Mask, pred_IJK: Mask, spacing_mm: Spacing) -> tuple[Mask, Mask, Floats]:
    """Both masks in the box that holds them, and the spacing, checked."""
    if ref_IJK.shape != pred_IJK.shape or ref_IJK.ndim != 3:
        raise DataError("shape of the prediction", wanted=ref_IJK.shape, got=pred_IJK.shape)
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise DataError("spacing", wanted="three lengths in mm", got=tuple(spacing_mm))
    box = Box.around(ref_IJK | pred_IJK).slices
    return ref_IJK[box], pred_IJK[box], np.array(spacing_mm, dtype=np.float64)
