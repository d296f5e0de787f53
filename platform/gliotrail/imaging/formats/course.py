"""Patches in the file layout of the course this project began with: one HDF5 file a sub-volume.

`x` is the image (C, I, J, K), `y` the labels one-hot (I, J, K, 4), background first; both float64.
The name holds case, number and corner: `BRATS_009.nii.gz_1_x73_y11_z63.h5`.
"""

from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from gliotrail.errors import DataError
from gliotrail.files import check_free, replacing
from gliotrail.imaging import kernels
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.patch import PatchIndex
from gliotrail.imaging.prepared import (
    Floats,
    Prepared,
    PreparedCase,
    read_labels_patch,
    read_patch,
)
from gliotrail.progress import progress


def export_patches(
    prepared: Prepared,
    index: PatchIndex,
    out: Path,
    limit: int | None = None,
    values: Literal["raw", "standardized"] | str = "raw",
) -> list[Path]:
    """Write patches in the course's layout.

    Args:
        prepared: the output of `prepare`.
        index: which patches.
        out: the folder to make; it appears whole or not at all.
        limit: how many, the index' first; all if None.
        values: `raw`, or `standardized` as in the course, see `standardized_patch`.

    Raises:
        DataError: `out` exists; another word for `values`, or a case that is not prepared.
    """
    check_free(out)
    if values not in {"raw", "standardized"}:
        raise DataError("values", wanted="raw or standardized", got=repr(values))
    paths = []
    count = len(index) if limit is None else min(limit, len(index))
    with replacing(out) as partial, progress(count, "export", "patches") as advance:
        partial.mkdir()
        for row in range(count):
            name = index.cases[index.case_number[row]]
            if name not in prepared.cases:
                raise DataError("patch index", where=name, wanted="a prepared case")
            box = Box.at(index.corner_vox[row], index.size_vox)
            case = prepared.cases[name]
            raw = values == "raw"
            image_CIJK = read_patch(case, box, "none") if raw else standardized_patch(case, box)
            labels_IJK = read_labels_patch(case, box)
            number = 1 + int((index.case_number[:row] == index.case_number[row]).sum())
            x, y, z = box.start_vox
            file = f"{name}.nii.gz_{number}_x{x}_y{y}_z{z}.h5"
            with h5py.File(partial / file, "w") as store:
                one_hot = np.eye(prepared.task.n_labels)[labels_IJK]
                store.create_dataset("x", data=image_CIJK.astype(np.float64), compression="gzip")
                store.create_dataset("y", data=one_hot, compression="gzip")
            paths.append(out / file)
            advance(1)
    return paths


def standardized_patch(case: PreparedCase, box: Box, fused: bool = False) -> Floats:
    """A box as `read_patch` gives it, float32 (C, I, J, K), standardised as in the course.

    (v - mean) / population std of each channel's slice k within the box, where background counts;
    0 where the std is 0. A voxel's value depends on the box, so whole scans are standardised
    otherwise.

    Raises:
        DataError: files that are missing or of another shape.
    """
    kernel = (
        kernels.fitting(kernels.standardize_slices, case.image_CIJK, np.int16) if fused else None
    )
    inside = box.meet(case.box)
    if kernel and 0 not in inside.size_vox:
        here, there = (inside.shifted([-n for n in of.start_vox]) for of in (case.box, box))
        patch_CKJI = np.zeros((len(case.channels), *box.size_vox[::-1]), np.float32)
        places = (here.start_vox, inside.size_vox, patch_CKJI, there.start_vox)
        kernel(case.image_CIJK.transpose(0, 3, 2, 1), *places)
        return patch_CKJI.transpose(0, 3, 2, 1)
    patch_CIJK = read_patch(case, box, "none")
    n_slice = box.size_vox[0] * box.size_vox[1]
    mean_CK = patch_CIJK.sum(axis=(1, 2), dtype=np.float64) / n_slice
    squares_CK = np.square(patch_CIJK, dtype=np.float64).sum(axis=(1, 2)) / n_slice
    std_CK = np.sqrt(np.maximum(squares_CK - mean_CK * mean_CK, 0))
    std_CK[std_CK == 0] = np.inf
    patch_CIJK -= mean_CK[:, None, None, :].astype(np.float32)
    patch_CIJK /= std_CK[:, None, None, :].astype(np.float32)
    return patch_CIJK
