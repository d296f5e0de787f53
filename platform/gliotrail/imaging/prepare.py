"""Stage `prepare`: every case checked once, then one memory-mappable array a case; and reading it.

A prepared case is its scan in RAS+, cropped to the brain's box, raw values, with what is needed to
go back to the file's own grid. Standardising happens when voxels are served, so a whole scan and a
patch of it get the same values. Axes are i, j, k of the scan in RAS+, c the channels; on disk i is
the fastest. Boxes are in voxels of the whole RAS+ scan, whatever the brain's box.
"""

import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil

from gliotrail import params
from gliotrail.errors import DataError
from gliotrail.files import replacing, sha256, write_json
from gliotrail.imaging.decathlon import Case, Dataset, read_dataset
from gliotrail.imaging.fingerprint import case_fingerprint, dataset_fingerprint
from gliotrail.imaging.geometry import Affine, Box, Vox3, spacing_mm, to_ras, vox3
from gliotrail.imaging.header import check_channels, check_same_grid, read_header
from gliotrail.imaging.labels import CHANNELS, Labels, voxels_per_label
from gliotrail.imaging.nifti import read_image, read_labels
from gliotrail.imaging.split import (
    Region,
    Split,
    box_from_json,
    box_to_json,
    make_split,
    split_from_json,
    split_to_json,
)
from gliotrail.progress import progress

__all__ = [
    "Prepared", "PreparedCase", "Region", "Split", "load_prepared", "prepare", "read_labels_patch",
    "read_patch",
]  # fmt: skip

Floats = npt.NDArray[np.float32]

_FORMAT = 1
_ARRAYS = ("file_affine", "affine_ras", "mean_C", "std_C", "slice_mean_CK", "slice_std_CK")
_PEAK_BYTES_PER_VALUE = 20  # of a process; measured on 240x240x155x4: 7 float32, 18 scaled int16


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
    """

    folder: Path
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

    @cached_property
    def image_CIJK(self) -> npt.NDArray[Any]:  # noqa: N802 - axes belong in names
        """Raw values of the box, int16 or float32, memory-mapped."""
        shape = (*self.box.size_vox, len(self.channels))
        return np.moveaxis(_mapped(self.folder / "image.npy", shape), 3, 0)

    @cached_property
    def labels_IJK(self) -> Labels | None:  # noqa: N802 - axes belong in names
        """Labels of the box, uint8, memory-mapped; None where there are none."""
        labelled = self.voxels_per_label is not None
        return _mapped(self.folder / "labels.npy", self.box.size_vox) if labelled else None

    def __getstate__(self) -> dict[str, Any]:
        # maps are opened anew by whoever gets the case
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class Prepared:
    """The output of the stage: cases by name, sorted, and the split."""

    cases: Mapping[str, PreparedCase]
    split: Split


def read_patch(
    case: PreparedCase, box: Box, standardize: Literal["brain", "slice", "none"] | str
) -> Floats:
    """The voxels of a box as float32 (C, I, J, K), which may reach past the brain and the scan.

    Args:
        case: of which case.
        box: in voxels of the RAS+ scan.
        standardize: `brain`: (v - mean) / std of the whole brain; `slice`: of the brain in the
            voxel's axial slice; `none`: raw values.

    Returns:
        Background (all channels 0 in the raw data, or outside the brain's box) is exactly 0, as is
        a channel whose std is 0.

    Raises:
        DataError: another word for `standardize`; files that are missing or of another shape.
    """
    if standardize not in {"brain", "slice", "none"}:
        raise DataError("standardize", wanted="brain, slice or none", got=repr(standardize))
    inside = box.meet(case.box)
    if 0 in inside.size_vox:
        return np.zeros((len(case.channels), *box.size_vox), np.float32)
    i, j, k = inside.shifted([-n for n in case.box.start_vox]).slices
    raw_CIJK = np.ascontiguousarray(case.image_CIJK[:, i, j, k])
    values_CIJK = np.empty(raw_CIJK.shape, np.float32)
    if standardize == "none":
        values_CIJK[:] = raw_CIJK
    else:
        if standardize == "brain":
            mean, std = case.mean_C[:, None, None, None], case.std_C[:, None, None, None]
        else:
            mean = case.slice_mean_CK[:, None, None, k]
            std = case.slice_std_CK[:, None, None, k]
        std = np.where(std == 0, np.inf, std)  # so that nothing but 0 comes out
        np.subtract(raw_CIJK, mean.astype(np.float32), out=values_CIJK)
        np.divide(values_CIJK, std.astype(np.float32), out=values_CIJK)
        np.copyto(values_CIJK, 0, where=~raw_CIJK.any(axis=0))
    if inside == box:
        return values_CIJK
    patch_CIJK = np.zeros((len(case.channels), *box.size_vox), np.float32)
    i, j, k = inside.shifted([-n for n in box.start_vox]).slices
    patch_CIJK[:, i, j, k] = values_CIJK
    return patch_CIJK


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
    return Prepared({case.name: _load_case(case) for case in folders}, split)


def _load_case(folder: Path) -> PreparedCase:
    values = _read_json(folder / "case.json")
    if values.pop("format") != _FORMAT:
        raise DataError("format", where=folder, wanted=_FORMAT, do="run the stage prepare again")
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
        raise DataError("prepared array", where=path, got=str(error)) from None
    if array.shape != tuple(shape):
        raise DataError("shape", where=path, wanted=tuple(shape), got=array.shape)
    return np.asarray(array)  # numpy's own class: the subclass costs time at every slice


def prepare(section: params.Prepare, raw: Path, out: Path, processes: int | None = None) -> None:
    """Check every case in `raw` and write `fingerprint.json`, `split.json` and `cases/` to `out`.

    Headers of all cases first, so that most mistakes are told within seconds; then the voxels,
    one case at a time in each process. Earlier output stays if a case is bad.

    Args:
        section: the rule of the split.
        raw: a folder in the Decathlon's layout.
        out: the folder to make.
        processes: how many at a time; as many as there are cores and as memory allows if None.

    Raises:
        ParamsError: the split, as `make_split`.
        DataError: as `read_dataset`, `read_image`, `read_labels`; a scan of zeros alone.
    """
    dataset = read_dataset(raw)
    shapes_vox, most_values = _check_headers(dataset)
    split = make_split(section.split, shapes_vox)
    processes = processes or _processes(len(dataset.cases), most_values)
    with replacing(out) as partial, progress(len(dataset.cases), "prepare", "cases") as advance:
        fingerprints = {}
        for name, fingerprint in _prepare_all(dataset, partial / "cases", processes):
            fingerprints[name] = fingerprint
            advance(1)
        write_json(partial / "fingerprint.json", dataset_fingerprint(fingerprints))
        write_json(partial / "split.json", split_to_json(split))


def _check_headers(dataset: Dataset) -> tuple[dict[str, Vox3], int]:
    """Shapes in RAS+ of the labelled cases, and how many values the largest scan has."""
    shapes_vox, most_values = {}, 0
    for case in dataset.cases:
        header = read_header(case.image)
        check_channels(header, len(CHANNELS))
        most_values = max(most_values, math.prod(header.shape))
        if case.label:
            label_header = read_header(case.label)
            check_channels(label_header, 1)
            check_same_grid(label_header, header)
            no_memory = np.broadcast_to(np.uint8(0), header.shape_vox)
            shapes_vox[case.name] = vox3(to_ras(no_memory, header.affine)[0].shape)
    return shapes_vox, most_values


def _processes(cases: int, most_values: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = psutil.virtual_memory().available // (_PEAK_BYTES_PER_VALUE * most_values)
    return max(1, min(cases, cores or 1, fitting))


def _prepare_all(
    dataset: Dataset, folder: Path, processes: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each case's name and fingerprint, as they are done."""
    order = dataset.channel_order
    if processes == 1:
        for case in dataset.cases:
            yield case.name, _prepare_case(case, order, folder / case.name)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the progress bar's thread
    with ProcessPoolExecutor(processes, context) as pool:
        jobs = {
            pool.submit(_prepare_case, case, order, folder / case.name): case.name
            for case in dataset.cases
        }
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BrokenProcessPool:
            do = "if memory is short, use fewer cores: taskset --cpu-list 0,1 COMMAND"
            raise DataError("a process of prepare was killed", do=do) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_case(case: Case, channel_order: Sequence[int], folder: Path) -> dict[str, Any]:
    """Write one case's folder; returns its fingerprint."""
    scan = read_image(case.image)
    ras, affine_ras = to_ras(scan.array, scan.affine)
    inside = np.zeros(ras.shape[:3], bool)
    for channel in channel_order:
        inside |= ras[..., channel] != 0
    labels_ras = counts = None
    if case.label:
        labels_ras = to_ras(read_labels(case.label, like=scan).array, scan.affine)[0]
        counts = voxels_per_label(labels_ras)
        inside |= labels_ras > 0
    box = Box.around(inside)
    if 0 in box.size_vox:
        raise DataError("voxel values", where=case.image, wanted="a brain", got="zeros alone")
    image_IJKC = _small_type(ras[box.slices], channel_order, case.image)
    brain_IJK = (image_IJKC != 0).any(axis=3)
    channels = [image_IJKC[..., c] for c in range(len(CHANNELS))]
    whole = [_mean_std(channel[brain_IJK]) for channel in channels]
    slices = [
        [_mean_std(channel[..., k][brain_IJK[..., k]]) for k in range(box.size_vox[2])]
        for channel in channels
    ]
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", image_IJKC)
    if labels_ras is not None:
        np.save(folder / "labels.npy", np.asfortranarray(labels_ras[box.slices]))
    values = {
        "format": _FORMAT,
        "name": case.name,
        "file_affine": scan.affine.tolist(),
        "file_shape_vox": list(scan.shape_vox),
        "affine_ras": affine_ras.tolist(),
        "ras_shape_vox": list(ras.shape[:3]),
        "spacing_mm": list(spacing_mm(affine_ras)),
        "box": box_to_json(box),
        "channels": list(CHANNELS),
        "mean_C": [mean for mean, _ in whole],
        "std_C": [std for _, std in whole],
        "slice_mean_CK": [[mean for mean, _ in row] for row in slices],
        "slice_std_CK": [[std for _, std in row] for row in slices],
        "voxels_per_label": counts and list(counts),
        "image_sha256": sha256(case.image),
        "label_sha256": case.label and sha256(case.label),
    }
    write_json(folder / "case.json", values)
    return case_fingerprint(scan, image_IJKC, brain_IJK, whole, counts)


def _small_type(
    ras_IJKC: npt.NDArray[Any], channel_order: Sequence[int], path: Path
) -> npt.NDArray[Any]:
    """A copy, channels in the order of CHANNELS, i fastest; int16 where that loses nothing."""
    low, high = ras_IJKC.min(), ras_IJKC.max()
    if max(-float(low), float(high)) > float(np.finfo(np.float32).max):
        raise DataError("voxel values", where=path, wanted="within float32", got=f"{high:g}")
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
