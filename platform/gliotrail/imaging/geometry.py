"""Boxes in voxels, and axes: from a file's own axes to RAS+ and back.

Array axes after RAS+ are i (left to right), j (posterior to anterior), k (inferior to superior);
world coordinates are `xyz_mm`. Boxes are half open: `start_vox` is in, `stop_vox` is out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

Vox3 = tuple[int, int, int]
Affine = npt.NDArray[np.float64]
"""4x4, voxel indices -> xyz_mm."""


def vox3(values: Sequence[Any] | npt.NDArray[Any]) -> Vox3:
    """Any three whole numbers as a tuple of Python ints."""
    i, j, k = (int(v) for v in values)
    return i, j, k


@dataclass(frozen=True)
class Box:
    """A box of voxels, start included, stop excluded. An empty box has a side of 0."""

    start_vox: Vox3
    stop_vox: Vox3

    @classmethod
    def at(cls, corner_vox: Sequence[int], size_vox: Sequence[int]) -> "Box":
        """The box of `size_vox` whose first voxel is `corner_vox`."""
        return cls(
            vox3(corner_vox), vox3([c + s for c, s in zip(corner_vox, size_vox, strict=True)])
        )

    @classmethod
    def around(cls, mask_IJK: npt.NDArray[np.bool_]) -> "Box":
        """The smallest box that holds every True voxel; empty where there is none."""
        sides: list[tuple[int, int]] = []
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            where = np.flatnonzero(mask_IJK.any(axis=others))
            sides.append((int(where[0]), int(where[-1]) + 1) if where.size else (0, 0))
            mask_IJK = mask_IJK[(slice(None),) * axis + (slice(*sides[-1]),)]
        return cls(vox3([s[0] for s in sides]), vox3([s[1] for s in sides]))

    @property
    def size_vox(self) -> Vox3:
        """Voxels along i, j, k."""
        return vox3([max(0, b - a) for a, b in zip(self.start_vox, self.stop_vox, strict=True)])

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that index an (I, J, K) array."""
        i, j, k = (slice(a, b) for a, b in zip(self.start_vox, self.stop_vox, strict=True))
        return i, j, k

    def grown(self, margin_vox: int) -> "Box":
        """The box with a margin on all six faces. May reach below 0."""
        return Box(
            vox3([a - margin_vox for a in self.start_vox]),
            vox3([b + margin_vox for b in self.stop_vox]),
        )

    def shifted(self, by_vox: Sequence[int]) -> "Box":
        """The box moved by so many voxels."""
        return Box(
            vox3([a + d for a, d in zip(self.start_vox, by_vox, strict=True)]),
            vox3([b + d for b, d in zip(self.stop_vox, by_vox, strict=True)]),
        )

    def meet(self, other: "Box") -> "Box":
        """The intersection of two boxes; possibly empty."""
        starts = vox3([max(a, b) for a, b in zip(self.start_vox, other.start_vox, strict=True)])
        stops = vox3([min(a, b) for a, b in zip(self.stop_vox, other.stop_vox, strict=True)])
        return Box(starts, vox3([max(a, b) for a, b in zip(starts, stops, strict=True)]))

    def touches(self, other: "Box") -> bool:
        """Whether the boxes share a voxel."""
        return 0 not in self.meet(other).size_vox


def spacing_mm(affine: Affine) -> tuple[float, float, float]:
    """Length of a voxel along each array axis."""
    x, y, z = (float(v) for v in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    return x, y, z


def same_spacing(one_mm: Sequence[float], other_mm: Sequence[float]) -> bool:
    """Whether two spacings are alike for a network: within a tenth along each axis."""
    pairs = zip(one_mm, other_mm, strict=True)
    return all(max(a, b) <= 1.1 * min(a, b) for a, b in pairs)


def by_mm(lengths_mm: Sequence[float]) -> str:
    """Lengths as text for messages: `1 x 1 x 5 mm`."""
    return " x ".join(f"{length:.3g}" for length in lengths_mm) + " mm"


def axis_codes(affine: Affine) -> str:
    """The direction of each array axis, such as `RAS` or `LPS`."""
    return "".join(str(code) for code in nib.orientations.aff2axcodes(affine))


def to_ras(array: npt.NDArray[Any], affine: Affine) -> tuple[npt.NDArray[Any], Affine]:
    """Turn and flip the first three axes to RAS+ (a view; nothing is resampled).

    Returns:
        the array and its affine, both in RAS+.
    """
    orientation = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(array, orientation)
    shape = array.shape[:3]
    return turned, affine @ nib.orientations.inv_ornt_aff(orientation, shape)


def from_ras(array_ras: npt.NDArray[Any], affine: Affine) -> npt.NDArray[Any]:
    """The inverse of `to_ras`: from RAS+ to the axes of a file whose affine is `affine`."""
    there = nib.orientations.io_orientation(affine)
    ras = nib.orientations.axcodes2ornt(("R", "A", "S"))
    back = nib.orientations.ornt_transform(ras, there)
    return np.asarray(nib.orientations.apply_orientation(array_ras, back))
