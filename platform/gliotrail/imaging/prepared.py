"""A prepared case: its scan's brain box as an array, and how its voxels are served.

A prepared case is its scan in RAS+, cropped to the brain's box, raw values, with what is needed to
go back to the file's own grid. Standardising happens when voxels are served, so a whole scan and a
patch of it get the same values. Axes are i, j, k of the scan in RAS+, c the channels; on disk i is
the fastest. Boxes are in voxels of the whole RAS+ scan, whatever the brain's box.
"""

import errno
import json
import math
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gliotrail.errors import DataError
from gliotrail.imaging import kernels
from gliotrail.imaging.geometry import Affine, Box, Vox3, spacing_mm, vox3
from gliotrail.imaging.labels import CHANNELS, Labels
from gliotrail.imaging.split import Split, box_from_json, split_from_json

Floats = npt.NDArray[np.float32]
FORMAT = 1
_FILES_A_CASE = 2
_ARRAYS = ("file_affine", "affine_ras", "mean_C", "std_C", "slice_mean_CK", "slice_std_CK")


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case: where its arrays are, its geometry, its statistics. Cheap to send to a worker.

    folder: holds `image.npy` and, where labelled, `labels.npy`.
    file_affine, file_shape_vox: the grid of its file; `geometry.from_ras` leads back to it.
    affine_ras, ras_shape_vox, spacing_mm: the grid of the scan in RAS+.
    box: the brain's box in it, which the arrays cover.
    mean_C, std_C: over the brain (voxels where any channel is not 0), population std.
    slice_mean_CK, slice_std_CK: the same over the brain of each axial slice k of the box.
    voxels_per_label: of the labels 0 to 3 in the whole scan; None where unlabelled.
    image_sha256, label_sha256: of the raw files.
    held_CIJK: the values of a case that was never written to a folder.
    """

    folder: Path | None
    name: str
    file_affine: Affine
    file_shape_vox: Vox3
    affine_ras: Affine
    ras_shape_vox: Vox3
    spacing_mm: tuple[float, float, float]
    box: Box
    channels: tuple[str, ...]
    mean_C: npt.NDArray[np.float64]
    std_C: npt.NDArray[np.float64]
    slice_mean_CK: npt.NDArray[np.float64]
    slice_std_CK: npt.NDArray[np.float64]
    voxels_per_label: tuple[int, ...] | None
    image_sha256: str
    label_sha256: str | None
    held_CIJK: npt.NDArray[Any] | None = None

    @cached_property
    def image_CIJK(self) -> npt.NDArray[Any]:
        """Raw values of the box, int16 or float32, memory-mapped."""
        if self.held_CIJK is not None:
            return self.held_CIJK
        assert self.folder is not None
        shape = (*self.box.size_vox, len(self.channels))
        return np.moveaxis(_mapped(self.folder / "image.npy", shape), 3, 0)

    @cached_property
    def labels_IJK(self) -> Labels | None:
        """Labels of the box, uint8, memory-mapped; None where there are none."""
        if self.folder is None or self.voxels_per_label is None:
            return None
        return _mapped(self.folder / "labels.npy", self.box.size_vox)

    def __getstate__(self) -> dict[str, Any]:
        # maps are opened anew by whoever gets the case
        return {field.name: getattr(self, field.name) for field in fields(self)}


def case_of_array(image_CIJK: npt.NDArray[Any], affine_ras: Affine, name: str) -> PreparedCase:
    """A scan in RAS+ that is in memory (channels in the order of CHANNELS), prepared like any.

    Raises:
        DataError: another shape, no numbers, NaN or Inf, zeros alone.
    """
    if image_CIJK.ndim != 4 or len(image_CIJK) != len(CHANNELS):
        wanted = f"({len(CHANNELS)}, I, J, K)"
        raise DataError("shape", where=name, wanted=wanted, got=image_CIJK.shape)
    if image_CIJK.dtype.kind not in "iuf":
        raise DataError("type", where=name, wanted="numbers", got=image_CIJK.dtype)
    box = Box.around((image_CIJK != 0).any(axis=0))
    if 0 in box.size_vox:
        raise DataError("voxel values", where=name, wanted="a brain", got="zeros alone")
    image_IJKC = np.moveaxis(image_CIJK[:, *box.slices], 0, 3)
    held_IJKC = small_type(image_IJKC, range(len(CHANNELS)), name)
    shape = vox3(image_CIJK.shape[1:])
    return PreparedCase(
        folder=None,
        name=name,
        file_affine=affine_ras,
        file_shape_vox=shape,
        affine_ras=affine_ras,
        ras_shape_vox=shape,
        spacing_mm=spacing_mm(affine_ras),
        box=box,
        channels=CHANNELS,
        **brain_statistics(held_IJKC),
        voxels_per_label=None,
        image_sha256="",
        label_sha256=None,
        held_CIJK=np.moveaxis(held_IJKC, 3, 0),
    )


@dataclass(frozen=True, eq=False)
class Prepared:
    """The output of the stage: cases by name, sorted, and the split."""

    cases: Mapping[str, PreparedCase]
    split: Split


def read_patch(
    case: PreparedCase,
    box: Box,
    standardize: Literal["brain", "slice", "none"] | str,
    fused: bool = False,
) -> Floats:
    """The voxels of a box as float32 (C, I, J, K), which may reach past the brain and the scan.

    Args:
        case: of which case.
        box: in voxels of the RAS+ scan.
        standardize: `brain`: (v - mean) / std of the whole brain; `slice`: of the brain in the
            voxel's axial slice; `none`: raw values.
        fused: by a compiled kernel where there is one. The same numbers, three times as fast; it
            pays where hundreds of patches are read, for it takes a second to load.

    Returns:
        Background (all channels 0 in the raw data, or outside the brain's box) is exactly 0, as is
        a channel whose std is 0. In memory i is the fastest, as on disk.

    Raises:
        DataError: another word for `standardize`; files that are missing or of another shape.
    """
    if standardize not in {"brain", "slice", "none"}:
        raise DataError("standardize", wanted="brain, slice or none", got=repr(standardize))
    inside = box.meet(case.box)
    whole = inside == box
    patch_CKJI = (np.empty if whole else np.zeros)(
        (len(case.channels), *box.size_vox[::-1]), np.float32
    )
    if 0 in inside.size_vox:
        return patch_CKJI.transpose(0, 3, 2, 1)
    here, there = (inside.shifted([-n for n in of.start_vox]) for of in (case.box, box))
    if standardize == "brain":
        mean_CK, std_CK = (
            np.repeat(of_C[:, None], inside.size_vox[2], axis=1)
            for of_C in (case.mean_C, case.std_C)
        )
    else:
        mean_CK, std_CK = (of[:, here.slices[2]] for of in (case.slice_mean_CK, case.slice_std_CK))
    mean_CK = mean_CK.astype(np.float32)
    std_CK = np.where(std_CK == 0, np.inf, std_CK).astype(np.float32)  # so that only 0 comes out
    kernel = kernels.fitting(kernels.standardize, case.image_CIJK, np.int16) if fused else None
    i, j, k = there.slices
    if standardize == "none":
        patch_CKJI[:, k, j, i] = _raw(case, here)
    elif kernel:
        starts = (here.start_vox, inside.size_vox, mean_CK, std_CK, patch_CKJI, there.start_vox)
        kernel(case.image_CIJK.transpose(0, 3, 2, 1), *starts)
    elif whole:
        _standardize(_raw(case, here), mean_CK, std_CK, patch_CKJI)
    else:
        values_CKJI = np.empty((len(patch_CKJI), *inside.size_vox[::-1]), np.float32)
        _standardize(_raw(case, here), mean_CK, std_CK, values_CKJI)
        patch_CKJI[:, k, j, i] = values_CKJI
    return patch_CKJI.transpose(0, 3, 2, 1)


def _standardize(
    raw_CKJI: npt.NDArray[Any],
    mean_CK: npt.NDArray[Any],
    std_CK: npt.NDArray[Any],
    out_CKJI: Floats,
) -> None:
    """(v - mean) / std, 0 where all channels are 0. `out_CKJI` is contiguous."""
    raw_CKJI = raw_CKJI.copy()
    whole_numbers = raw_CKJI.dtype.kind in "iu"
    brain_KJI = (np.bitwise_or if whole_numbers else np.logical_or).reduce(raw_CKJI, axis=0) != 0
    out_CKJI[:] = raw_CKJI
    out_CKn = out_CKJI.reshape(*out_CKJI.shape[:2], -1)  # numpy is twice as fast over two axes
    out_CKn -= mean_CK[:, :, None]
    out_CKn /= std_CK[:, :, None]
    out_CKJI.view(np.int32)[:] &= -brain_KJI.astype(np.int32)  # all bits of a number, or none


def _raw(case: PreparedCase, box: Box) -> npt.NDArray[Any]:
    """A box of the stored array (C, K, J, I), as it lies on disk."""
    i, j, k = box.slices
    return case.image_CIJK[:, i, j, k].transpose(0, 3, 2, 1)


def read_labels_patch(case: PreparedCase, box: Box) -> Labels:
    """The labels of a box as uint8 (I, J, K), 0 outside the brain's box.

    Args:
        case: of which case.
        box: in voxels of the RAS+ scan; may reach past it.

    Raises:
        DataError: the case has no labels; a file that is missing or of another shape.
    """
    if case.labels_IJK is None:
        raise DataError("labels", where=case.name, wanted="some", got="an unlabelled case")
    patch_IJK = np.zeros(box.size_vox, np.uint8)
    inside = box.meet(case.box)
    target = inside.shifted([-n for n in box.start_vox]).slices
    patch_IJK[target] = case.labels_IJK[inside.shifted([-n for n in case.box.start_vox]).slices]
    return patch_IJK


def load_prepared(folder: Path) -> Prepared:
    """Read what `prepare` wrote; arrays are mapped when they are first used.

    Raises:
        DataError: the folder is not there or is of another format.
    """
    split = split_from_json(_read_json(folder / "split.json"))
    folders = sorted((folder / "cases").iterdir())
    _let_open(_FILES_A_CASE * len(folders))
    return Prepared({case.name: _load_case(case) for case in folders}, split)


def _let_open(files: int) -> None:
    """Each map holds a file, and 1024 are the usual limit: raise it as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + files if hard == resource.RLIM_INFINITY else min(soft + files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _load_case(folder: Path) -> PreparedCase:
    values = _read_json(folder / "case.json")
    if values.pop("format") != FORMAT:
        raise DataError("format", where=folder, wanted=FORMAT, do="run the stage prepare again")
    counts = values["voxels_per_label"]
    return PreparedCase(
        folder=folder,
        **values
        | {key: np.array(values[key], np.float64) for key in _ARRAYS}
        | {key: vox3(values[key]) for key in ("file_shape_vox", "ras_shape_vox")}
        | {key: tuple(values[key]) for key in ("spacing_mm", "channels")}
        | {"box": box_from_json(values["box"]), "voxels_per_label": counts and tuple(counts)},
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such file", where=path, do="run the stage prepare first") from None
    except (OSError, ValueError) as error:
        raise DataError("not JSON", where=path, got=str(error)) from None
    return values


def _mapped(path: Path, shape: Sequence[int]) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        full = isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}
        do = "raise the limit: ulimit -n 65536" if full else None
        raise DataError("prepared array", where=path, got=str(error), do=do) from None
    if array.shape != tuple(shape):
        raise DataError("shape", where=path, wanted=tuple(shape), got=array.shape)
    return np.asarray(array)  # numpy's own class: the subclass costs time at every slice


def small_type(
    ras_IJKC: npt.NDArray[Any], channel_order: Sequence[int], where: object
) -> npt.NDArray[Any]:
    """A copy, channels in another order, i fastest; int16 where that loses nothing, else float32.

    Raises:
        DataError: a value beyond float32, NaN or Inf.
    """
    low, high = ras_IJKC.min(), ras_IJKC.max()
    if not max(-float(low), float(high)) <= float(np.finfo(np.float32).max):  # so NaN is too
        raise DataError("voxel values", where=where, wanted="within float32", got=f"{high:g}")
    limits = np.iinfo(np.int16)
    whole = (
        limits.min <= low
        and high <= limits.max
        and (
            ras_IJKC.dtype.kind in "iu"
            or all(
                np.array_equal(channel, np.rint(channel)) for channel in np.moveaxis(ras_IJKC, 3, 0)
            )
        )
    )
    small = np.empty(ras_IJKC.shape, np.int16 if whole else np.float32, order="F")
    for channel, in_file in enumerate(channel_order):
        small[..., channel] = ras_IJKC[..., in_file]
    return small


def brain_statistics(image_IJKC: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Mean and population std of each channel over the brain, whole and per axial slice.

    The brain is where any channel is not 0. Keys are fields of `PreparedCase`.
    """
    brain_IJK = (image_IJKC != 0).any(axis=3)
    channels = np.moveaxis(image_IJKC, 3, 0)
    whole_C2 = np.array([_mean_std(channel[brain_IJK]) for channel in channels])
    slices_CK2 = np.array(
        [
            [_mean_std(channel[..., k][brain_IJK[..., k]]) for k in range(brain_IJK.shape[2])]
            for channel in channels
        ]
    )
    return {
        "mean_C": whole_C2[:, 0],
        "std_C": whole_C2[:, 1],
        "slice_mean_CK": slices_CK2[..., 0],
        "slice_std_CK": slices_CK2[..., 1],
    }


def _mean_std(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean and population std; of whole numbers exactly rounded, so on every machine the same."""
    if not values.size:
        return 0.0, 0.0
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)
        return float(wide.mean()), float(wide.std())
    n, total = values.size, int(values.sum(dtype=np.int64))
    squares = int(np.square(values, dtype=np.int64).sum())
    return total / n, math.sqrt(n * squares - total * total) / n
