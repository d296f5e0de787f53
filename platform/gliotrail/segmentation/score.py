"""A patient's score: every measure of a predicted label volume against the true one.

All of it comes from the two label volumes alone, so that scoring a saved mask gives the numbers
of `metrics.json` again. What is undefined, and what an empty class does: see `metrics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from gliotrail.dataset.brats import BRATS, SCHEMES
from gliotrail.dataset.task import IGNORED, Task
from gliotrail.imaging.geometry import Box, to_ras
from gliotrail.imaging.header import check_same_grid
from gliotrail.imaging.labels import Labels, to_labels
from gliotrail.imaging.nifti import Scan, read_image
from gliotrail.segmentation.metrics import confusion, counts_of, mean_defined
from gliotrail.segmentation.surface_distance import hd95_mm, surface_dice

Scheme = Literal["msd", "brats21", "brats23"]
SURFACE_TOLERANCE_MM: Final = 1.0
"""How far a surface may be off and still count in `surface_dice`."""


class _Rates(BaseModel):
    """What is measured of a class or region, and averaged. None is undefined.

    `*_brain` are over the voxels of the brain mask; None without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dice: float | None
    sensitivity: float | None
    specificity: float | None
    hd95_mm: float | None
    surface_dice: float | None
    dice_brain: float | None
    sensitivity_brain: float | None
    specificity_brain: float | None


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
    brain: npt.NDArray[np.bool_] | None = None,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
    task: Task = BRATS,
) -> Score:
    """Measure a prediction against the truth, both on the same grid.

    Args:
        ref_IJK: true labels; where they are ignored, nothing counts.
        pred_IJK: predicted labels.
        spacing_mm: length of a voxel along i, j, k.
        brain: where the brain is (I, J, K), for the measures `*_brain`.
        tolerance_mm: of the surface Dice.
        task: what the labels are.

    Raises:
        DataError: shapes differ, other labels, or no usable spacing.
    """
    if (ignored := ref_IJK == IGNORED).any():
        ref_IJK, pred_IJK = np.where(ignored, 0, ref_IJK), np.where(ignored, 0, pred_IJK)
        brain = ~ignored if brain is None else brain & ~ignored
    grid = confusion(ref_IJK, pred_IJK, task.n_labels, ~ignored if ignored.any() else None)
    brain_grid = None if brain is None else confusion(ref_IJK, pred_IJK, task.n_labels, brain)
    box = Box.around((ref_IJK | pred_IJK) != 0).slices
    ref_box, pred_box = ref_IJK[box], pred_IJK[box]
    voxel_ml = float(np.prod(spacing_mm)) / 1000

    @cache  # the class `enhancing` and the region ET are the same labels
    def measures(labels: tuple[int, ...]) -> Measures:
        counts = counts_of(grid, labels)
        in_brain = None if brain_grid is None else counts_of(brain_grid, labels)
        masks = np.isin(ref_box, labels), np.isin(pred_box, labels)
        return Measures(
            dice=counts.dice,
            sensitivity=counts.sensitivity,
            specificity=counts.specificity,
            hd95_mm=hd95_mm(*masks, spacing_mm),
            surface_dice=surface_dice(*masks, spacing_mm, tolerance_mm),
            dice_brain=in_brain.dice if in_brain else None,
            sensitivity_brain=in_brain.sensitivity if in_brain else None,
            specificity_brain=in_brain.specificity if in_brain else None,
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
    means = {
        name: mean_defined(getattr(measures, name) for measures in of.values())
        for name in _Rates.model_fields
    }
    values = {name: mean.value for name, mean in means.items()}
    return Means(**values, n={name: mean.n for name, mean in means.items()})


def _read_ras(path: Path, codes: Mapping[int, int]) -> Scan:
    """Labels in RAS+, with the header that they would then have."""
    scan = read_image(path, channels=1)
    labels, affine = to_ras(to_labels(scan.array[..., 0], codes, where=path), scan.affine)
    return Scan(labels, replace(scan.header, shape=labels.shape, affine=affine))
