"""The picture of a training's validation: truth, prediction, and where they differ."""

from gliotrail.imaging.labels import Labels, known_labels
from gliotrail.imaging.prepared import Prepared, read_labels_patch, read_patch
from gliotrail.imaging.split import Region


def draw_validation(prepared: Prepared, region: Region, predicted_IJK: Labels, title: str) -> bytes:
    """A validation region: truth, prediction, and where they differ."""
    # matplotlib takes a second to import, and only worker 0 draws, after the first epoch
    from gliotrail.report.figures import figure_png
    from gliotrail.report.overlays import draw_prediction, pick_slices

    case = prepared.cases[region.case]
    box = region.box_in(case.ras_shape_vox)
    image_CIJK = read_patch(case, box, "foreground")
    labels_IJK = known_labels(read_labels_patch(case, box))
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
