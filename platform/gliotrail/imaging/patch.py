"""Stage `patch`: for one size, which sub-volumes of the prepared arrays to train on.

The versioned data set of a size is an index of a few kilobytes: case, corner, size and voxels per
class of each patch. Corners are in voxels of the RAS+ scan; a patch stays inside its scan, but may
reach past the foreground's box. Sampling is exact: running sums give the background share at every
corner, and corners below the threshold are drawn without replacement.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gliotrail import params
from gliotrail.errors import DataError
from gliotrail.files import replacing
from gliotrail.imaging.case_cache import at_a_time, forget_others, key_of, made
from gliotrail.imaging.geometry import Box, Vox3, vox3
from gliotrail.imaging.labels import of_classes
from gliotrail.imaging.prepared import Prepared, PreparedCase, read_labels_patch
from gliotrail.imaging.split import box_to_json
from gliotrail.param_types import Size, format_size
from gliotrail.progress import progress, say

Ints = npt.NDArray[np.int64]

_CORNER = [f"corner_{axis}_vox" for axis in "ijk"]
_SIZE = [f"size_{axis}_vox" for axis in "ijk"]
_VOXELS = "voxels_"
_CENTRED = "class_centred"
_CLASSLESS_TRIES = 1000
_PEAK_BYTES_PER_VOXEL = 60  # of the scan, where there are classes everywhere


@dataclass(frozen=True, eq=False)
class PatchIndex:
    """Which patches there are; N rows.

    size_vox: of each of them.
    cases: names; `case_number` (N,) counts in them.
    corner_vox: (N, 3), in voxels of the RAS+ scan.
    classes: their names.
    voxels: (N, 1 + classes), background and each class.
    class_centred: (N,), drawn because its centre (corner + size // 2) is of a class.
    """

    size_vox: Vox3
    cases: tuple[str, ...]
    case_number: Ints
    corner_vox: Ints
    classes: tuple[str, ...]
    voxels: Ints
    class_centred: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.case_number)

    def only(self, cases: Sequence[str]) -> "PatchIndex":
        """The rows of these cases, in the same order."""
        chosen = np.isin(self.case_number, [n for n, c in enumerate(self.cases) if c in cases])
        return replace(
            self,
            case_number=self.case_number[chosen],
            corner_vox=self.corner_vox[chosen],
            voxels=self.voxels[chosen],
            class_centred=self.class_centred[chosen],
        )


def patch(
    section: params.Patch,
    prepared: Prepared,
    size: Size,
    out: Path,
    memory: Path | None = None,
    threads: int | None = None,
) -> PatchIndex:
    """Draw the patches of a size and write `out/SIZE/index.parquet`.

    Of each training case `per_case` corners, each at most once (all of them where there are
    fewer): first, of those with a class, `class_centred` of them whose centre is of a class,
    uniformly; then the rest, uniformly among all corners that are left; last the share
    `without_class` of all, whose centre is body and which hold no class, as far as there are such.
    A case without any class gives patches of this last kind alone, and its name is printed. The
    order is random, so that the first n are a sample as well. Other sizes and cases change
    nothing: all comes from (seed, size, case name).

    Args:
        section: how many, which, the seed.
        prepared: the output of `prepare`.
        size: voxels along i, j, k.
        out: the folder of all sizes.
        memory: folder of each case's patches for the next run (see `case_cache`); none if None.
        threads: cases at a time; as many as there are cores and as memory allows if None.

    Raises:
        DataError: a training case with no patch of this size that stays inside the scan, clear
            of the validation block and, where it has any class, below the share of background.
    """
    names = prepared.split.training
    memory = memory and memory / format_size(size)
    largest = max(math.prod(prepared.cases[name].ras_shape_vox) for name in names)
    threads = threads or at_a_time(len(names), _PEAK_BYTES_PER_VOXEL * largest)
    rows, keys = [], []
    with (
        progress(len(names), f"patch {format_size(size)}", "cases") as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        work = partial(_kept_or_drawn, section, prepared, size, memory)
        try:
            for key, row in pool.map(work, names):
                keys.append(key)
                rows.append(row)
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    forget_others(memory, keys)
    empty = [name for name, row in zip(names, rows, strict=True) if not row[1][:, 1:].any()]
    if len(empty) == len(names):
        wanted = f"some {' or '.join(prepared.task.class_names)}"
        raise DataError("labels of all training cases", wanted=wanted, got="none")
    if empty:
        few = f"{', '.join(empty[:3])}{', ..' if len(empty) > 3 else ''}"
        say(f"training cases without any class, whose patches show none: {few}")
    corner_vox, voxels, centred = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    numbers = np.repeat(np.arange(len(names)), [len(row[0]) for row in rows])
    classes = prepared.task.class_names
    index = PatchIndex(size, names, numbers, corner_vox, classes, voxels, centred)
    _write(index, out / format_size(size) / "index.parquet")
    return index


def _kept_or_drawn(
    section: params.Patch, prepared: Prepared, size: Size, memory: Path | None, name: str
) -> tuple[str, tuple[Ints, Ints, npt.NDArray[np.bool_]]]:
    """A case's key, and its rows as `_draw` gives them, drawn now or by an earlier run."""
    case, kept_out = prepared.cases[name], prepared.split.kept_out.get(name)
    settings = section.model_dump(mode="json", exclude={"sizes"})
    asked = [name, settings, size, kept_out and box_to_json(kept_out)]
    n_classes = len(prepared.task.classes)
    key = key_of(__name__, *asked, case.image_sha256, case.label_sha256, n_classes)

    def draw() -> dict[str, Any]:
        drawn = _draw(section, case, size, kept_out, n_classes)
        return {"rows": [part.tolist() for part in drawn]}

    corner_vox, voxels, centred = made(memory, key, (), draw)["rows"]
    return key, (np.array(corner_vox, np.int64), np.array(voxels, np.int64), np.array(centred))


def _draw(
    section: params.Patch, case: PreparedCase, size: Size, kept_out: Box | None, n_classes: int
) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Corners (n, 3), voxels (n, 1 + classes) and whether drawn for its centre (n,) of one case."""
    labels_IJK = read_labels_patch(case, case.box)
    if not of_classes(labels_IJK).any():
        return _without_class(section, case, size, kept_out, n_classes)
    corners, region = _corners_near_classes(case, size)
    labels_IJK = read_labels_patch(case, region)
    counts = np.stack([_running_sums(labels_IJK == c + 1, size) for c in range(n_classes)])
    n_voxels = int(np.prod(size))
    background = n_voxels - counts.sum(axis=0)
    valid = background / n_voxels < section.background_below
    if not valid.any():
        raise DataError(
            f"patches of {format_size(size)}", where=case.name,
            wanted=f"a background share below {section.background_below:g}",
            got=f"at least {background.min() / n_voxels:.4g} everywhere",
            do="raise patch.background_below: 1.0 takes every patch with a class",
        )  # fmt: skip
    if kept_out is not None:
        # the corners from which a patch reaches a voxel of the box
        starts = [a - s + 1 for a, s in zip(kept_out.start_vox, size, strict=True)]
        touching = Box(vox3(starts), kept_out.stop_vox).meet(corners)
        valid[touching.shifted([-n for n in corners.start_vox]).slices] = False
    if not valid.any():
        raise DataError(
            f"patches of {format_size(size)}", where=case.name,
            wanted="one clear of the validation block and its margin", got="none",
            do="make the size, the block or its margin smaller",
        )  # fmt: skip
    centre = Box.at([s // 2 for s in size], valid.shape).slices
    central = np.flatnonzero(valid & of_classes(labels_IJK)[centre])
    rng = np.random.default_rng([section.seed, *size, *case.name.encode()])
    n_classless = round(section.without_class * section.per_case)
    n_with_class = section.per_case - n_classless
    n_central = min(len(central), round(section.class_centred * n_with_class))
    first = rng.choice(central, n_central, replace=False)
    valid.flat[first] = False
    rest = np.flatnonzero(valid)
    others = rng.choice(rest, min(len(rest), n_with_class - n_central), replace=False)
    drawn = np.concatenate([first, others])
    voxels = np.stack([background.ravel()[drawn], *counts.reshape(n_classes, -1)[:, drawn]], 1)
    corner_vox = np.stack(np.unravel_index(drawn, valid.shape), axis=1) + corners.start_vox
    if n_classless:
        classless = _classless_corners(case, size, kept_out, rng)[:n_classless]
        corner_vox = np.concatenate([corner_vox, classless])
        empty = [[n_voxels] + [0] * n_classes] * len(classless)
        voxels = np.concatenate([voxels, np.array(empty, np.int64).reshape(-1, n_classes + 1)])
    order = rng.permutation(len(corner_vox))
    return corner_vox[order], voxels[order].astype(np.int64), order < len(first)


def _without_class(
    section: params.Patch, case: PreparedCase, size: Size, kept_out: Box | None, n_classes: int
) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Like `_draw`, for a case without any class."""
    _check_fits(case, size)
    rng = np.random.default_rng([section.seed, *size, *case.name.encode()])
    corner_vox = _classless_corners(case, size, kept_out, rng)[: section.per_case]
    if not len(corner_vox):
        wanted = "one clear of the validation block and of ignored voxels"
        what = f"patches of {format_size(size)}"
        raise DataError(what, where=case.name, wanted=wanted, got="none")
    voxels = np.zeros((len(corner_vox), n_classes + 1), np.int64)
    voxels[:, 0] = math.prod(size)
    return corner_vox, voxels, np.zeros(len(corner_vox), np.bool_)


def _check_fits(case: PreparedCase, size: Size) -> None:
    if any(s > n for n, s in zip(case.ras_shape_vox, size, strict=True)):
        wanted = f"at most {format_size(case.ras_shape_vox)}, its scan"
        do = "take others in patch.sizes and sweep.space.patch_size"
        raise DataError("patch size", where=case.name, wanted=wanted, got=format_size(size), do=do)


def _classless_corners(
    case: PreparedCase, size: Size, kept_out: Box | None, rng: np.random.Generator
) -> Ints:
    """Corners (n, 3), in random order, of patches with body at their centre and no class."""
    labelled_IJK = read_labels_patch(case, case.box) > 0
    centres = np.flatnonzero((case.image_CIJK != 0).any(axis=0) & ~labelled_IJK)
    tried = rng.choice(centres, min(len(centres), _CLASSLESS_TRIES), replace=False)
    at = np.stack(np.unravel_index(tried, case.box.size_vox), axis=1) + case.box.start_vox
    limits = np.array(case.ras_shape_vox) - size
    corners = dict.fromkeys(vox3(row) for row in np.clip(at - np.array(size) // 2, 0, limits))
    boxes = [Box.at(corner, size) for corner in corners]
    clear = [
        box.start_vox
        for box in boxes
        if not (kept_out and box.touches(kept_out)) and not read_labels_patch(case, box).any()
    ]
    return np.array(clear, np.int64).reshape(-1, 3)


def _corners_near_classes(case: PreparedCase, size: Size) -> tuple[Box, Box]:
    """The box of corners whose patches may hold a class, and the box of all those patches' voxels.

    The share of background is below a threshold of at most 1, so there is a class in every patch.
    """
    _check_fits(case, size)
    limits = [n - s + 1 for n, s in zip(case.ras_shape_vox, size, strict=True)]
    labelled = Box.around(read_labels_patch(case, case.box) > 0).shifted(case.box.start_vox)
    starts = vox3([a - s + 1 for a, s in zip(labelled.start_vox, size, strict=True)])
    corners = Box(starts, labelled.stop_vox).meet(Box((0, 0, 0), vox3(limits)))
    stops = vox3([b - 1 + s for b, s in zip(corners.stop_vox, size, strict=True)])
    return corners, Box(corners.start_vox, stops)


def _running_sums(mask_IJK: npt.NDArray[np.bool_], size: Size) -> npt.NDArray[np.int32]:
    """How many voxels are True in the box of `size` at each corner; (I-i+1, J-j+1, K-k+1)."""
    sums = mask_IJK.astype(np.int32)
    for axis, n in enumerate(size):
        upto = np.moveaxis(np.cumsum(sums, axis=axis, dtype=np.int32), axis, 0)
        window = upto[n - 1 :].copy()
        window[1:] -= upto[:-n]
        sums = np.moveaxis(window, 0, axis)
    return sums


def _write(index: PatchIndex, path: Path) -> None:
    columns: dict[str, pa.Array] = {
        "case": pa.DictionaryArray.from_arrays(
            pa.array(index.case_number, pa.int32()), pa.array(index.cases)
        )
    }
    for axis, name in enumerate(_CORNER):
        columns[name] = pa.array(index.corner_vox[:, axis], pa.int32())
    for axis, name in enumerate(_SIZE):
        columns[name] = pa.array(np.full(len(index), index.size_vox[axis]), pa.int32())
    for label, name in enumerate(("background", *index.classes)):
        columns[_VOXELS + name] = pa.array(index.voxels[:, label], pa.int32())
    columns[_CENTRED] = pa.array(index.class_centred)
    with replacing(path) as partial:
        pq.write_table(pa.table(columns), partial, compression="zstd")


def read_index(path: Path) -> PatchIndex:
    """Read an `index.parquet`.

    Raises:
        DataError: it is not there, is no such index, or has no rows.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError("no such file", where=path, do="run the stage patch first") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError("patch index", where=path, got=str(error)) from None
    voxels = [name for name in table.column_names if name.startswith(_VOXELS)]
    wanted = ["case", *_CORNER, *_SIZE, *(voxels or [f"{_VOXELS}background"]), _CENTRED]
    if table.column_names != wanted or not table.num_rows:
        got = f"{table.num_rows} rows of {', '.join(table.column_names)}"
        raise DataError("patch index", where=path, wanted=f"rows of {', '.join(wanted)}", got=got)
    case = table["case"].combine_chunks()
    sizes = {vox3(row) for row in _numbers(table, _SIZE)}
    if len(sizes) != 1:
        raise DataError("patch index", where=path, wanted="one size", got=f"{len(sizes)} sizes")
    return PatchIndex(
        size_vox=sizes.pop(),
        cases=tuple(case.dictionary.to_pylist()),
        case_number=case.indices.to_numpy().astype(np.int64),
        corner_vox=_numbers(table, _CORNER),
        classes=tuple(name.removeprefix(_VOXELS) for name in voxels[1:]),
        voxels=_numbers(table, voxels),
        class_centred=table[_CENTRED].to_numpy().astype(bool),
    )


def _numbers(table: pa.Table, names: list[str]) -> Ints:
    return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.int64)
