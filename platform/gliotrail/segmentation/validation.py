"""What the weights are worth on the validation data: whole scans, or a block that was kept out.

Each worker predicts its share of the regions; what is summed over workers is one row of counts and
the loss a region, the other workers' rows being 0, so that the numbers don't depend on how many
workers there are.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from gliotrail.errors import TrainingError
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.labels import CLASSES, REGIONS, Labels
from gliotrail.imaging.prepared import PreparedCase, read_labels_patch
from gliotrail.imaging.split import Region
from gliotrail.segmentation.inference import predict_box, to_labels
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.metrics import (
    CLASS_LABELS,
    N_LABELS,
    confusion,
    counts_of,
    mean_defined,
    soft_dice_loss_scan,
)
from gliotrail.segmentation.unet import UNet3d

Watch = Callable[[Region, Labels], None]
"""Is shown the labels (I, J, K) predicted for a region."""


def validate(
    model: UNet3d,
    cases: Mapping[str, PreparedCase],
    regions: Sequence[Region],
    standardize: str,
    threshold: float,
    world: World,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Means over the regions: soft Dice loss, and Dice, sensitivity, specificity of label maps.

    Every worker calls it; all get the same numbers. `watch` is shown this worker's regions.

    Raises:
        TrainingError: no region has a tumour.
    """
    rows = torch.zeros(len(regions), N_LABELS**2 + 1, dtype=torch.float64)
    model.eval()
    for place in range(world.rank, len(regions), world.workers):
        region, case = regions[place], cases[regions[place].case]
        box = region.box or Box((0, 0, 0), case.ras_shape_vox)
        probabilities_CIJK = predict_box(model, case, box, standardize)
        ref_IJK = read_labels_patch(case, box)
        pred_IJK = to_labels(probabilities_CIJK, threshold)
        if watch is not None:
            watch(region, pred_IJK)
        rows[place, :-1] = torch.from_numpy(confusion(ref_IJK, pred_IJK).ravel())
        rows[place, -1] = soft_dice_loss_scan(probabilities_CIJK, ref_IJK)
    model.train()
    rows = rows.to(world.device)
    world.sum_in_place(rows)
    return _means(rows.cpu().numpy())


def _means(rows: npt.NDArray[np.float64]) -> dict[str, float]:
    tables = rows[:, :-1].astype(np.int64).reshape(-1, N_LABELS, N_LABELS)
    if not tables[:, 1:].any():
        raise TrainingError(
            "validation data: no tumour in them",
            wanted="at least one scan or block with a tumour",
            do="choose others in prepare.split.validation",
        )
    metrics: dict[str, float | None] = {"val/soft_dice_loss": float(rows[:, -1].mean())}
    for name, labels in {**CLASS_LABELS, **REGIONS}.items():
        counts = [counts_of(table, labels) for table in tables]
        metrics[f"val/dice_{name}"] = mean_defined(c.dice for c in counts).value
        if name in CLASSES:
            metrics[f"val/sensitivity_{name}"] = mean_defined(c.sensitivity for c in counts).value
            metrics[f"val/specificity_{name}"] = mean_defined(c.specificity for c in counts).value
    for kind, names in (("classes", CLASS_LABELS), ("regions", REGIONS)):
        means = mean_defined(metrics[f"val/dice_{name}"] for name in names)
        metrics[f"val/dice_mean_{kind}"] = means.value
    return {key: value for key, value in metrics.items() if value is not None}
