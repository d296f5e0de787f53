"""A sheet of the patches that `patch` drew."""

from pathlib import Path
from typing import Final

import numpy as np

from gliotrail.imaging.geometry import Box, vox3
from gliotrail.imaging.labels import known_labels
from gliotrail.imaging.patch import PatchIndex
from gliotrail.imaging.prepared import Prepared, read_labels_patch, read_patch
from gliotrail.param_types import format_size
from gliotrail.report.figures import save_figure
from gliotrail.report.overlays import draw_patches

_PATCHES: Final = 12


def draw_sample(prepared: Prepared, index: PatchIndex, out: Path) -> None:
    """Write a sheet of the first patches of an index, which are a random sample, as a PNG."""
    # rows go by case: the same number of each
    each = -(-_PATCHES // len(index.cases))
    numbers = range(min(len(index.cases), _PATCHES))
    rows = [row for n in numbers for row in np.flatnonzero(index.case_number == n)[:each]][
        :_PATCHES
    ]
    patches, n_voxels = [], float(np.prod(index.size_vox))
    for row in rows:
        case = prepared.cases[index.cases[index.case_number[row]]]
        box = Box.at(vox3(index.corner_vox[row]), index.size_vox)
        share = 1 - index.voxels[row, 0] / n_voxels
        image_CIJK = read_patch(case, box, "none")
        labels_IJK = known_labels(read_labels_patch(case, box))
        patches.append((image_CIJK, labels_IJK, f"{case.name}, {share:.0%}"))
    size = format_size(index.size_vox)
    title = f"{len(rows)} of {len(index)} patches of {size}, with their share of labelled voxels"
    drawing = draw_patches(patches, case.spacing_mm, title, task=prepared.task)
    save_figure(drawing, out / f"{size}.png")
