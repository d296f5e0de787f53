"""Rules for a label map after the network: small components and small regions are dropped, holes
filled. They are found on validation patients, kept only where they help, and go with the weights.

Isensee et al., Nature Methods 18 (2021), keep only the largest component where that helps on
validation; for BraTS, a small enhancing tumour becomes the region around it (Isensee et al.,
arXiv:2011.00848).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from pydantic import Field
from scipy import ndimage

from gliotrail.dataset.task import Region, Task
from gliotrail.imaging.labels import Labels
from gliotrail.params import Section
from gliotrail.segmentation.metrics import confusion, counts_of, mean_defined

_COMPONENT_ML: Final = (0.03, 0.1, 0.3, 1.0, 3.0)
_REGION_ML: Final = (0.1, 0.3, 1.0, 3.0)
_LEAST_GAIN: Final = 1e-3
"""The least gain in mean Dice that a rule must bring."""
_NEIGHBOURS: Final = np.ones((3, 3, 3), bool)

_Volume = Annotated[float, Field(gt=0, le=1000)]


class Postprocess(Section):
    """Rules by the name of a region, or of a class where a task has no regions.

    least_component_ml: connected components (over faces, edges and corners) below it are dropped,
        but never the largest.
    least_region_ml: a region of a smaller total volume is dropped whole.
    fill_holes: holes in these regions are filled.

    Dropped voxels become the region around them, or background.
    """

    least_component_ml: dict[str, _Volume] = Field(default_factory=dict)
    least_region_ml: dict[str, _Volume] = Field(default_factory=dict)
    fill_holes: list[str] = Field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Judged:
    """Predicted and true labels (I, J, K), and the sides of a voxel."""

    pred_IJK: Labels
    ref_IJK: Labels
    spacing_mm: tuple[float, float, float]


def postprocessed(
    labels_IJK: Labels, rules: Postprocess | None, task: Task, spacing_mm: Sequence[float]
) -> Labels:
    """Labels (I, J, K) by the rules, regions from the innermost; the same array if there are none.

    Args:
        spacing_mm: the sides of a voxel.
    """
    if rules in (None, Postprocess()):
        return labels_IJK
    box = _box_of(labels_IJK > 0)
    labels_IJK = labels_IJK.copy()
    inside_IJK = labels_IJK[box]  # a view: components and holes lie in it
    voxel_ml = math.prod(spacing_mm) / 1000
    for region in reversed(_regions(task)):
        mask_IJK = np.isin(inside_IJK, region.labels)
        before_IJK = mask_IJK.copy()
        least_vox = rules.least_component_ml.get(region.name, 0) / voxel_ml
        if least_vox:
            components_IJK, _ = ndimage.label(mask_IJK, _NEIGHBOURS)
            sizes_vox = np.bincount(components_IJK.ravel())
            largest_vox = sizes_vox[1:].max(initial=0)
            mask_IJK &= sizes_vox[components_IJK] >= min(least_vox, largest_vox)
        if mask_IJK.sum() * voxel_ml < rules.least_region_ml.get(region.name, 0):
            mask_IJK[:] = False
        inside_IJK[before_IJK & ~mask_IJK] = _around(region, task)
        if region.name in rules.fill_holes:
            inside_IJK[ndimage.binary_fill_holes(mask_IJK) & ~mask_IJK] = region.written
    return labels_IJK


def find_rules(cases: Sequence[Judged], task: Task) -> tuple[Postprocess, float, float]:
    """Rules that raise the mean Dice, found one after the other, the innermost region first.

    Returns:
        the rules, if any helps; mean Dice over regions and cases without and with them, NaN where
        no Dice is defined.
    """
    cut = [_cut(case) for case in cases]
    rules = Postprocess()
    first = best = _mean_dice(cut, rules, task)
    for region in reversed(_regions(task)):
        for candidates in (_components(region.name), _wholes(region.name), _fills(region.name)):
            tried = [_with(rules, change) for change in candidates]
            scores = [_mean_dice(cut, one, task) for one in tried]
            top = max(scores)
            if top > best + _LEAST_GAIN:
                rules, best = tried[scores.index(top)], top
    return rules, first, best


_Change = tuple[str, str, float]


def _components(name: str) -> Iterator[_Change]:
    return (("least_component_ml", name, ml) for ml in _COMPONENT_ML)


def _wholes(name: str) -> Iterator[_Change]:
    return (("least_region_ml", name, ml) for ml in _REGION_ML)


def _fills(name: str) -> Iterator[_Change]:
    yield "fill_holes", name, 0.0


def _with(rules: Postprocess, change: _Change) -> Postprocess:
    kind, name, ml = change
    if kind == "fill_holes":
        return rules.model_copy(update={kind: [*rules.fill_holes, name]})
    return rules.model_copy(update={kind: {**getattr(rules, kind), name: ml}})


def _mean_dice(cases: Sequence[Judged], rules: Postprocess, task: Task) -> float:
    of_regions: dict[str, list[float | None]] = {region.name: [] for region in _regions(task)}
    for case in cases:
        pred_IJK = postprocessed(case.pred_IJK, rules, task, case.spacing_mm)
        table = confusion(case.ref_IJK, pred_IJK, task.n_labels)
        for region in _regions(task):
            of_regions[region.name].append(counts_of(table, region.labels).dice)
    mean = mean_defined(mean_defined(dice).value for dice in of_regions.values()).value
    return math.nan if mean is None else mean


def _regions(task: Task) -> tuple[Region, ...]:
    if task.regions:
        return task.regions
    return tuple(
        Region(name=name, labels=(label,), written=label)
        for label, name in enumerate(task.class_names, start=1)
    )


def _around(region: Region, task: Task) -> int:
    """The label of the smallest region that holds this one, 0 if none does."""
    holding = [one for one in _regions(task) if set(one.labels) > set(region.labels)]
    return min(holding, key=lambda one: len(one.labels)).written if holding else 0


def _cut(case: Judged) -> Judged:
    """The same within the box of all foreground, true or predicted: Dice needs no more."""
    box = _box_of((case.pred_IJK > 0) | (case.ref_IJK > 0))
    return Judged(case.pred_IJK[box], case.ref_IJK[box], case.spacing_mm)


def _box_of(mask_IJK: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[slice, ...]:
    found = ndimage.find_objects(mask_IJK.astype(np.uint8))
    return found[0] if found else (slice(0), slice(0), slice(0))
