"""A prepared case: its scan's foreground box as an array, and how its voxels are served.

A prepared case is its scan in RAS+, cropped to the foreground's box, raw values, with the geometry
of the file's own grid. Standardising happens when voxels are served, so a whole scan and a patch of
it get the same values. Axes are i, j, k of the scan in RAS+, c the channels; on disk i is the
fastest. Boxes are in voxels of the whole RAS+ scan, not of the foreground's box.
"""

import errno
import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from gliotrail.dataset.task import Channel, Task
from gliotrail.errors import DataError
from gliotrail.imaging import kernels
from gliotrail.imaging.foreground import air_values
from gliotrail.imaging.geometry import Affine, Box, Vox3, spacing_mm, vox3
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.split import Split, box_from_json, split_from_json
from gliotrail.imaging.voxel_values import body_of, foreground_statistics, small_type

Floats = npt.NDArray[np.float32]
FORMAT = 2
TASK_FILE = "task.json"
INTENSITIES_FILE = "intensities.json"
SAME_MM = 1e-3
_FILES_A_CASE = 2
_ARRAYS = ("file_affine", "affine_ras", "air_C", "mean_C", "std_C", "slice_mean_CK", "slice_std_CK")


class Intensity(BaseModel):
    """A CT channel in the foreground (all classes) of the training cases: Hounsfield units.

    low, high: percentiles 0.5 and 99.5, to which values are clipped; then mean and std
    (nnU-Net, arXiv:1904.08128, supplement).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    mean: float
    std: float


Intensities = Mapping[str, Intensity]
"""By the CT channel's name."""


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case: where its arrays are, its geometry, its statistics. Cheap to send to a worker.

    folder: holds `image.npy` and, where labelled, `labels.npy`.
    file_affine, file_shape_vox: the grid of its file; `geometry.from_ras` leads back to it.
    affine_ras, ras_shape_vox, spacing_mm: the grid of the scan in RAS+.
    box: the foreground's box in it, which the arrays cover.
    air_C: what was subtracted of each channel, so that air is 0 (see `foreground`).
    mean_C, std_C: over the foreground (voxels where any channel is not 0), population std; for CT
        and for channels that are not standardised, `by_kind` replaces them.
    slice_mean_CK, slice_std_CK: the same over the foreground of each axial slice k of the box.
    voxels_per_label: of the labels 0 to 3 in the whole scan; None where unlabelled.
    image_sha256, label_sha256: of the raw files.
    held_CIJK: the values of a case that was never written to a folder.
    clip_C2: the least and largest value of each channel, if any is clipped.
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
    air_C: npt.NDArray[np.float64]
    mean_C: npt.NDArray[np.float64]
    std_C: npt.NDArray[np.float64]
    slice_mean_CK: npt.NDArray[np.float64]
    slice_std_CK: npt.NDArray[np.float64]
    voxels_per_label: tuple[int, ...] | None
    image_sha256: str
    label_sha256: str | None
    held_CIJK: npt.NDArray[Any] | None = None
    clip_C2: npt.NDArray[np.float64] | None = None

    @property
    def resampled(self) -> bool:
        """Whether the arrays' voxels differ from the file's."""
        own_mm = sorted(spacing_mm(self.file_affine))
        return bool(np.abs(np.array(own_mm) - sorted(self.spacing_mm)).max() > SAME_MM) or sorted(
            self.file_shape_vox
        ) != sorted(self.ras_shape_vox)

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
        # the process that receives the case opens the maps anew
        return {field.name: getattr(self, field.name) for field in fields(self)}


def case_of_array(
    image_CIJK: npt.NDArray[Any],
    affine_ras: Affine,
    name: str,
    channels: Sequence[Channel],
    intensities: Intensities | None = None,
    subtracted_C: npt.NDArray[np.float64] | None = None,
) -> PreparedCase:
    """A scan in RAS+ in memory, prepared like any; `subtracted_C` is the air, if that is gone.

    Raises:
        DataError: another shape, no numbers, NaN or Inf, air alone.
    """
    if image_CIJK.ndim != 4 or len(image_CIJK) != len(channels):
        wanted = f"({len(channels)}, I, J, K)"
        raise DataError("shape", where=name, wanted=wanted, got=image_CIJK.shape)
    if image_CIJK.dtype.kind not in "iuf":
        raise DataError("type", where=name, wanted="numbers", got=image_CIJK.dtype)
    air_C = air_values(image_CIJK) if subtracted_C is None else np.zeros(len(channels))
    box = Box.around(body_of(image_CIJK, air_C, name))
    image_IJKC = np.moveaxis(image_CIJK[:, *box.slices], 0, 3)
    held_IJKC = small_type(image_IJKC, range(len(channels)), name, air_C)
    air_C = air_C if subtracted_C is None else subtracted_C
    shape = vox3(image_CIJK.shape[1:])
    case = PreparedCase(
        folder=None,
        name=name,
        file_affine=affine_ras,
        file_shape_vox=shape,
        affine_ras=affine_ras,
        ras_shape_vox=shape,
        spacing_mm=spacing_mm(affine_ras),
        box=box,
        channels=tuple(channel.name for channel in channels),
        air_C=air_C,
        **foreground_statistics(held_IJKC),
        voxels_per_label=None,
        image_sha256="",
        label_sha256=None,
        held_CIJK=np.moveaxis(held_IJKC, 3, 0),
    )
    return by_kind(case, channels, intensities or {})


def by_kind(
    case: PreparedCase, channels: Sequence[Channel], intensities: Intensities
) -> PreparedCase:
    """The case with the statistics that its channels' kinds are standardised by.

    Raises:
        DataError: a CT channel without known intensities.
    """
    if all(channel.kind == "MR" for channel in channels):
        return case
    mean_C, std_C = case.mean_C.copy(), case.std_C.copy()
    slice_mean_CK, slice_std_CK = case.slice_mean_CK.copy(), case.slice_std_CK.copy()
    clip_C2 = np.tile([-np.inf, np.inf], (len(channels), 1))
    for c, channel in enumerate(channels):
        if channel.kind == "MR":
            continue
        mean, std = 0.0, 1.0
        if channel.kind == "CT":
            if channel.name not in intensities:
                wanted, do = "those of the training data", "run the stage prepare again"
                raise DataError(f"intensities of {channel.name}", where=case.name, wanted=wanted,
                                got="none", do=do)  # fmt: skip
            of = intensities[channel.name]
            mean, std, clip_C2[c] = of.mean, of.std, (of.low, of.high)
        mean_C[c], std_C[c] = mean - case.air_C[c], std
        slice_mean_CK[c], slice_std_CK[c] = mean_C[c], std
        clip_C2[c] -= case.air_C[c]
    return replace(
        case,
        mean_C=mean_C,
        std_C=std_C,
        slice_mean_CK=slice_mean_CK,
        slice_std_CK=slice_std_CK,
        clip_C2=clip_C2 if np.isfinite(clip_C2).any() else None,
    )


@dataclass(frozen=True, eq=False)
class Prepared:
    """The output of the stage: cases by name, sorted, the split, and what is segmented.

    intensities: of the CT channels, over the training cases.
    """

    cases: Mapping[str, PreparedCase]
    split: Split
    task: Task
    intensities: Intensities


def read_patch(
    case: PreparedCase,
    box: Box,
    standardize: Literal["foreground", "slice", "none"] | str,
    fused: bool = False,
) -> Floats:
    """The voxels of a box as float32 (C, I, J, K); it may reach past foreground and scan.

    Each channel's air is subtracted.

    Args:
        case: of which case.
        box: in voxels of the RAS+ scan.
        standardize: `foreground`: (v - mean) / std of all that is not air; `slice`: of the same in
            the voxel's axial slice; `none`: raw values.
        fused: by a compiled kernel where there is one. The same numbers, three times as fast; it
            pays where hundreds of patches are read, for it takes a second to load.

    Returns:
        Background (all channels 0 in the raw data, or outside the foreground's box) is exactly 0,
        as is a channel whose std is 0. In memory i is the fastest, as on disk.

    Raises:
        DataError: another word for `standardize`; files that are missing or of another shape.
    """
    if standardize not in {"foreground", "slice", "none"}:
        raise DataError("standardize", wanted="foreground, slice or none", got=repr(standardize))
    inside = box.meet(case.box)
    whole = inside == box
    patch_CKJI = (np.empty if whole else np.zeros)(
        (len(case.channels), *box.size_vox[::-1]), np.float32
    )
    if 0 in inside.size_vox:
        return patch_CKJI.transpose(0, 3, 2, 1)
    here, there = (inside.shifted([-n for n in of.start_vox]) for of in (case.box, box))
    if standardize == "foreground":
        mean_CK, std_CK = (
            np.repeat(of_C[:, None], inside.size_vox[2], axis=1)
            for of_C in (case.mean_C, case.std_C)
        )
    else:
        mean_CK, std_CK = (of[:, here.slices[2]] for of in (case.slice_mean_CK, case.slice_std_CK))
    mean_CK = mean_CK.astype(np.float32)
    std_CK = np.where(std_CK == 0, np.inf, std_CK).astype(np.float32)  # so that only 0 comes out
    fused = fused and case.clip_C2 is None
    kernel = kernels.fitting(kernels.standardize, case.image_CIJK, np.int16) if fused else None
    i, j, k = there.slices
    if standardize == "none":
        patch_CKJI[:, k, j, i] = _raw(case, here)
    elif kernel:
        starts = (here.start_vox, inside.size_vox, mean_CK, std_CK, patch_CKJI, there.start_vox)
        kernel(case.image_CIJK.transpose(0, 3, 2, 1), *starts)
    elif whole:
        _standardize(_raw(case, here), mean_CK, std_CK, patch_CKJI, case.clip_C2)
    else:
        values_CKJI = np.empty((len(patch_CKJI), *inside.size_vox[::-1]), np.float32)
        _standardize(_raw(case, here), mean_CK, std_CK, values_CKJI, case.clip_C2)
        patch_CKJI[:, k, j, i] = values_CKJI
    return patch_CKJI.transpose(0, 3, 2, 1)


def _standardize(
    raw_CKJI: npt.NDArray[Any],
    mean_CK: npt.NDArray[Any],
    std_CK: npt.NDArray[Any],
    out_CKJI: Floats,
    clip_C2: npt.NDArray[np.float64] | None = None,
) -> None:
    """(v - mean) / std, 0 where all channels are 0. `out_CKJI` is contiguous."""
    raw_CKJI = raw_CKJI.copy()
    whole_numbers = raw_CKJI.dtype.kind in "iu"
    inside_KJI = (np.bitwise_or if whole_numbers else np.logical_or).reduce(raw_CKJI, axis=0) != 0
    out_CKJI[:] = raw_CKJI
    if clip_C2 is not None:
        np.clip(out_CKJI, *clip_C2.T[:, :, None, None, None], out=out_CKJI)
    out_CKn = out_CKJI.reshape(*out_CKJI.shape[:2], -1)  # numpy is twice as fast over two axes
    out_CKn -= mean_CK[:, :, None]
    out_CKn /= std_CK[:, :, None]
    out_CKJI.view(np.int32)[:] &= -inside_KJI.astype(np.int32)  # all bits of a number, or none


def _raw(case: PreparedCase, box: Box) -> npt.NDArray[Any]:
    """A box of the stored array (C, K, J, I), as it lies on disk."""
    i, j, k = box.slices
    return case.image_CIJK[:, i, j, k].transpose(0, 3, 2, 1)


def read_labels_patch(case: PreparedCase, box: Box) -> Labels:
    """The labels of a box as uint8 (I, J, K), 0 outside the foreground's box.

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
    task = read_task(folder)
    intensities = {
        name: Intensity.model_validate(of)
        for name, of in _read_json(folder / INTENSITIES_FILE).items()
    }
    cases = [by_kind(_load_case(case), task.channels, intensities) for case in folders]
    return Prepared({case.name: case for case in cases}, split, task, intensities)


def read_task(folder: Path) -> Task:
    """The task (channels, classes, regions) of the data that `prepare` wrote to a folder.

    Raises:
        DataError: the stage hasn't been run, or by another version.
    """
    try:
        return Task.model_validate(_read_json(folder / TASK_FILE))
    except ValidationError as error:
        do = "run the stage prepare again"
        raise DataError("task", where=folder, got=error.errors()[0]["msg"], do=do) from None


def _let_open(files: int) -> None:
    """Raise the limit of open files as far as allowed: each map holds one, 1024 are usual."""
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
