"""A patient's score: every measure of a predicted label volume against the true one.

All measures come from the two label volumes alone, so that scoring a saved mask gives the numbers
of `metrics.json` again. For undefined values and empty classes see `metrics`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from gliotrail.dataset.brats import BRATS, SCHEMES
from gliotrail.dataset.task import IGNORED, Task
from gliotrail.errors import ParamsError
from gliotrail.imaging.geometry import Box, to_ras
from gliotrail.imaging.header import check_same_grid
from gliotrail.imaging.labels import Labels, to_labels
from gliotrail.imaging.nifti import Scan, read_image
from gliotrail.own_parts import own_part, short_name, tried
from gliotrail.segmentation.metrics import confusion, counts_of, mean_defined
from gliotrail.segmentation.surface_distance import hd95_mm, surface_dice

Scheme = Literal["msd", "brats21", "brats23"]
Measure = Callable[[npt.NDArray[np.bool_], npt.NDArray[np.bool_], tuple[float, ...]], float | None]
"""A measure of your own: the true and the predicted mask of a class or region (I, J, K), cropped
to all labels, and the voxel's sides in mm -> a number, or None if it is undefined."""
SURFACE_TOLERANCE_MM: Final = 1.0
"""How far a surface may be off and still count in `surface_dice`."""


class _Rates(BaseModel):
    """The measures of a class or region that are averaged. None is undefined.

    `*_foreground` are over the voxels that are not air; None where these are unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dice: float | None
    sensitivity: float | None
    specificity: float | None
    hd95_mm: float | None
    surface_dice: float | None
    dice_foreground: float | None
    sensitivity_foreground: float | None
    specificity_foreground: float | None
    own: dict[str, float | None] = {}
    """The measures of your own."""


class Measures(_Rates):
    """One class or region."""

    volume_ref_ml: float
    volume_pred_ml: float


class Means(_Rates):
    """Means over all classes, or all regions: of each measure, over its `n` defined values."""

    n: dict[str, int]


class Empty(BaseModel):
    """The classes and regions that have no voxel in the truth, and in the prediction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: tuple[str, ...]
    pred: tuple[str, ...]


class Score(BaseModel):
    """All measures of one patient. `model_dump()` is the JSON of `gliotrail score`.

    Where a data set names no regions, `mean_regions` is over its classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: dict[str, Measures]
    regions: dict[str, Measures]
    mean_classes: Means
    mean_regions: Means
    empty: Empty
    surface_tolerance_mm: float


def score(
    ref_IJK: Labels,
    pred_IJK: Labels,
    spacing_mm: Sequence[float],
    foreground: npt.NDArray[np.bool_] | None = None,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
    task: Task = BRATS,
    own: Mapping[str, Measure] = MappingProxyType({}),
) -> Score:
    """Measure a prediction against the truth, both on the same grid.

    Args:
        ref_IJK: true labels; voxels that they ignore are left out.
        pred_IJK: predicted labels.
        spacing_mm: length of a voxel along i, j, k.
        foreground: where the foreground is (I, J, K), for the measures `*_foreground`.
        tolerance_mm: of the surface Dice.
        task: what the labels are.
        own: measures of your own, by name.

    Raises:
        ParamsError: a measure of your own gives neither a number nor None.
        DataError: shapes differ, other labels, or no usable spacing.
    """
    if (ignored := ref_IJK == IGNORED).any():
        ref_IJK, pred_IJK = np.where(ignored, 0, ref_IJK), np.where(ignored, 0, pred_IJK)
        foreground = ~ignored if foreground is None else foreground & ~ignored
    grid = confusion(ref_IJK, pred_IJK, task.n_labels, ~ignored if ignored.any() else None)
    inside = None if foreground is None else confusion(ref_IJK, pred_IJK, task.n_labels, foreground)
    box = Box.around((ref_IJK | pred_IJK) != 0).slices
    ref_box, pred_box = ref_IJK[box], pred_IJK[box]
    voxel_ml = float(np.prod(spacing_mm)) / 1000

    @cache  # the class `enhancing` and the region ET are the same labels
    def measures(labels: tuple[int, ...]) -> Measures:
        counts = counts_of(grid, labels)
        in_foreground = None if inside is None else counts_of(inside, labels)
        masks = np.isin(ref_box, labels), np.isin(pred_box, labels)
        return Measures(
            dice=counts.dice,
            sensitivity=counts.sensitivity,
            specificity=counts.specificity,
            hd95_mm=hd95_mm(*masks, spacing_mm),
            surface_dice=surface_dice(*masks, spacing_mm, tolerance_mm),
            dice_foreground=in_foreground.dice if in_foreground else None,
            sensitivity_foreground=in_foreground.sensitivity if in_foreground else None,
            specificity_foreground=in_foreground.specificity if in_foreground else None,
            own={name: _own(name, of, *masks, spacing_mm) for name, of in own.items()},
            volume_ref_ml=counts.ref * voxel_ml,
            volume_pred_ml=counts.pred * voxel_ml,
        )

    classes = {name: measures(labels) for name, labels in task.class_labels.items()}
    regions = {name: measures(labels) for name, labels in task.region_labels.items()}
    everything = {**classes, **regions}
    return Score(
        classes=classes,
        regions=regions,
        mean_classes=_means(classes),
        mean_regions=_means(regions or classes),
        empty=Empty(
            ref=tuple(name for name, of in everything.items() if of.volume_ref_ml == 0),
            pred=tuple(name for name, of in everything.items() if of.volume_pred_ml == 0),
        ),
        surface_tolerance_mm=tolerance_mm,
    )


def score_files(
    ref: Path, pred: Path, ref_scheme: Scheme | None = None, task: Task = BRATS
) -> Score:
    """Score a mask file against another; orientations may differ, the voxels may not.

    Args:
        ref: true labels (.nii or .nii.gz).
        pred: predicted labels, in the task's codes.
        ref_scheme: the codes of `ref`, where they are BraTS' and not the task's.
        task: what is segmented.

    Raises:
        DataError: a file that can't be used, or grids that differ in more than orientation.
    """
    codes = task.labels_of_codes
    truth = _read_ras(ref, SCHEMES[ref_scheme] if ref_scheme else codes)
    prediction = _read_ras(pred, codes)
    check_same_grid(prediction.header, truth.header)
    return score(truth.array, prediction.array, truth.spacing_mm, task=task)


def _means(of: Mapping[str, Measures]) -> Means:
    rows = [{**measures.model_dump(exclude={"own"}), **measures.own} for measures in of.values()]
    own = next(iter(of.values())).own
    means = {
        name: mean_defined(row[name] for row in rows)
        for name in (*_Rates.model_fields, *own)
        if name != "own"
    }
    values = {name: mean.value for name, mean in means.items() if name not in own}
    return Means(
        **values,
        own={name: means[name].value for name in own},
        n={name: mean.n for name, mean in means.items()},
    )


def _own(
    name: str,
    measure: Measure,
    ref_IJK: npt.NDArray[np.bool_],
    pred_IJK: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float],
) -> float | None:
    what, wanted = f"evaluate.measures: {name}", "a finite number, or None where it is undefined"
    with tried(what, wanted):
        value = measure(ref_IJK, pred_IJK, tuple(spacing_mm))
        number = None if value is None else float(value)
    if number is not None and not math.isfinite(number):
        raise ParamsError(what, wanted=wanted, got=number)
    return number


def own_measures(names: Sequence[str]) -> dict[str, Measure]:
    """Measures of your own by their short names, tried on small masks.

    Raises:
        ParamsError: as `own_part`; a name that is taken; neither a number nor None.
    """
    found: dict[str, Measure] = {}
    for name in names:
        short = short_name(name)
        if short in found or short in Measures.model_fields:
            raise ParamsError(f"evaluate.measures: {name}", wanted="a name of its own", got=short)
        found[short] = own_part(name, "evaluate.measures")
        some, none = np.ones((2, 3, 4), np.bool_), np.zeros((2, 3, 4), np.bool_)
        for masks in ((some, some), (some, none), (none, some), (none, none)):
            _own(name, found[short], *masks, (1.0, 1.0, 3.0))
    return found


def _read_ras(path: Path, codes: Mapping[int, int]) -> Scan:
    """Labels in RAS+, with the header that they would then have."""
    scan = read_image(path, channels=1)
    labels, affine = to_ras(to_labels(scan.array[..., 0], codes, where=path), scan.affine)
    return Scan(labels, replace(scan.header, shape=labels.shape, affine=affine))
