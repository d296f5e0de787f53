"""What the weights are worth on the validation data: whole scans, or a block that was kept out.

Each worker predicts its share of the regions; what is summed over workers is one row of counts and
sums a region, so that the numbers don't depend on how many workers there are.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from gliotrail.errors import TrainingError
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.labels import CLASSES, REGIONS, Labels, class_masks
from gliotrail.imaging.prepared import PreparedCase, read_labels_patch
from gliotrail.imaging.split import Region
from gliotrail.segmentation.inference import predict_box, to_labels
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.metrics import CLASS_LABELS, EPS, confusion, counts_of, mean_defined
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
        TrainingError: no region has a tumour, or predicts one, so that there is no Dice.
    """
    rows = torch.zeros(len(regions), 16 + 3 * len(CLASSES), dtype=torch.float64)
    model.eval()
    for place in range(world.rank, len(regions), world.workers):
        region, case = regions[place], cases[regions[place].case]
        box = region.box or Box((0, 0, 0), case.ras_shape_vox)
        probabilities_CIJK = predict_box(model, case, box, standardize)
        ref_IJK = read_labels_patch(case, box)
        pred_IJK = to_labels(probabilities_CIJK, threshold)
        if watch is not None:
            watch(region, pred_IJK)
        counted = confusion(ref_IJK, pred_IJK).ravel()
        soft = soft_dice_sums(probabilities_CIJK, class_masks(ref_IJK)).ravel()
        rows[place] = torch.from_numpy(np.concatenate([counted, soft]))
    model.train()
    rows = rows.to(world.device)
    world.sum_in_place(rows)
    return _means(rows.cpu().numpy())


def soft_dice_sums(
    probabilities_CIJK: npt.NDArray[np.float32], masks_CIJK: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Per class (C, 3): sum(y p), sum(y^2), sum(p^2), in float64."""
    p = probabilities_CIJK
    return np.stack(
        [
            np.sum(p, axis=(1, 2, 3), where=masks_CIJK, dtype=np.float64),
            masks_CIJK.sum(axis=(1, 2, 3), dtype=np.float64),
            np.square(p, dtype=np.float64).sum(axis=(1, 2, 3)),
        ],
        axis=1,
    )


def _means(rows: npt.NDArray[np.float64]) -> dict[str, float]:
    tables = rows[:, :16].astype(np.int64).reshape(-1, 4, 4)
    overlap, truth, found = np.moveaxis(rows[:, 16:].reshape(-1, len(CLASSES), 3), 2, 0)
    soft_dice = (2 * overlap + EPS) / (truth + found + EPS)
    metrics: dict[str, float | None] = {"val/soft_dice_loss": float(1 - soft_dice.mean())}
    for name, labels in {**CLASS_LABELS, **REGIONS}.items():
        counts = [counts_of(table, labels) for table in tables]
        metrics[f"val/dice_{name}"] = mean_defined(c.dice for c in counts).value
        if name in CLASSES:
            metrics[f"val/sensitivity_{name}"] = mean_defined(c.sensitivity for c in counts).value
            metrics[f"val/specificity_{name}"] = mean_defined(c.specificity for c in counts).value
    for kind, names in (("classes", CLASS_LABELS), ("regions", REGIONS)):
        means = mean_defined(metrics[f"val/dice_{name}"] for name in names)
        metrics[f"val/dice_mean_{kind}"] = means.value
    if metrics["val/dice_WT"] is None:
        raise TrainingError(
            "validation data: no tumour in them, and none predicted",
            wanted="at least one scan or block with a tumour",
            do="choose others in prepare.split.validation",
        )
    return {key: value for key, value in metrics.items() if value is not None}
