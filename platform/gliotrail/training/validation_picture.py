"""The picture that a training leaves of its validation: truth, prediction, and where they part."""

import numpy as np

from gliotrail.dataset.task import IGNORED
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.prepared import Prepared, read_labels_patch, read_patch
from gliotrail.imaging.split import Region


def draw_validation(prepared: Prepared, region: Region, predicted_IJK: Labels, title: str) -> bytes:
    """A validation region: truth, prediction, and where they part."""
    # matplotlib takes a second to import, and only worker 0 draws, after the first epoch
    from gliotrail.report.figures import figure_png
    from gliotrail.report.overlays import draw_prediction, pick_slices

    case = prepared.cases[region.case]
    box = region.box_in(case.ras_shape_vox)
    image_CIJK, labels_IJK = read_patch(case, box, "foreground"), read_labels_patch(case, box)
    labels_IJK = np.where(labels_IJK == IGNORED, np.uint8(0), labels_IJK)
    drawing = draw_prediction(
        image_CIJK,
        labels_IJK,
        predicted_IJK,
        pick_slices(labels_IJK, 4),
        case.spacing_mm,
        title,
        first_k=box.start_vox[2],
        task=prepared.task,
    )
    return figure_png(drawing)
