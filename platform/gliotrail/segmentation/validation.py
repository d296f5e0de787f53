"""Measures of the weights on the validation data: whole scans, or a block that was kept out.

Each worker predicts its share of the regions. A region's row of counts and loss is summed over
workers, where all but one have 0, so that the numbers don't depend on the number of workers.
"""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.errors import TrainingError
from gliotrail.imaging.labels import Labels, of_classes
from gliotrail.imaging.prepared import PreparedCase, read_labels_patch
from gliotrail.imaging.split import Region
from gliotrail.progress import say
from gliotrail.segmentation.inference import forward, predict_box, to_labels
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.metrics import (
    confusion,
    counts_of,
    mean_defined,
    soft_dice_loss_scan,
)
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.postprocess import Judged, Postprocess, find_rules, postprocessed
from gliotrail.synthesis.tumours import Floats, Mask

Watch = Callable[[Region, Labels], None]
"""Gets the labels (I, J, K) predicted for a region."""


def validate(
    model: Network,
    task: Task,
    cases: Mapping[str, PreparedCase],
    regions: Sequence[Region],
    standardize: str,
    threshold: float,
    world: World,
    watch: Watch | None = None,
    rules: Postprocess | None = None,
) -> dict[str, float]:
    """Means over the regions: soft Dice loss, and Dice, sensitivity, specificity of label maps.

    Every worker calls it; all get the same numbers. `watch` gets this worker's regions, with label
    maps after the `rules`.

    Raises:
        TrainingError: no region has any class.
    """
    rows = torch.zeros(len(regions), task.n_labels**2 + 1, dtype=torch.float64)
    model.eval()
    for place in range(world.rank, len(regions), world.workers):
        region = regions[place]
        rows[place], pred_IJK = row_of_region(
            model, task, cases[region.case], region, standardize, threshold, rules
        )
        if watch is not None:
            watch(region, pred_IJK)
    model.train()
    return means_of_rows(_of_all(rows, world), task)


def check_regions(task: Task, cases: Mapping[str, PreparedCase], regions: Sequence[Region]) -> None:
    """Refuse before training what `validate` would refuse after an epoch.

    Raises:
        TrainingError: no region has any class.
    """
    for region in regions:
        case = cases[region.case]
        if of_classes(read_labels_patch(case, region.box_in(case.ras_shape_vox))).any():
            return
    raise no_class(task)


def row_of_region(
    model: Network,
    task: Task,
    case: PreparedCase,
    region: Region,
    standardize: str,
    threshold: float,
    rules: Postprocess | None = None,
) -> tuple[torch.Tensor, Labels]:
    """One region's row for the means (the table of counts and the loss, flat), and its labels."""
    box = region.box_in(case.ras_shape_vox)
    probabilities_CIJK = predict_box(model, case, box, standardize)
    pred_IJK = to_labels(probabilities_CIJK, threshold, model.heads)
    pred_IJK = postprocessed(pred_IJK, rules, task, case.spacing_mm)
    return _row(probabilities_CIJK, pred_IJK, read_labels_patch(case, box), task), pred_IJK


def rules_of_validation(
    model: Network,
    task: Task,
    cases: Mapping[str, PreparedCase],
    regions: Sequence[Region],
    standardize: str,
    threshold: float,
) -> Postprocess | None:
    """The rules that raise Dice on the validation data, printed; None if there are none."""
    model.eval()
    judged = []
    for region in regions:
        case = cases[region.case]
        _, pred_IJK = row_of_region(model, task, case, region, standardize, threshold)
        ref_IJK = read_labels_patch(case, region.box_in(case.ras_shape_vox))
        judged.append(Judged(pred_IJK, ref_IJK, case.spacing_mm))
    rules, before, after = find_rules(judged, task)
    if rules == Postprocess():
        say(f"post-processing: no rule helps; Dice on validation {before:.3f}")
        return None
    taken = json.dumps(rules.model_dump(exclude_defaults=True))
    say(f"post-processing: {taken}; Dice on validation {before:.3f} without, {after:.3f} with it")
    return rules


def validate_synthetic(
    model: Network,
    scans: Sequence[tuple[Floats, Labels, Mask]],
    threshold: float,
    world: World,
    part: str = "val_synthetic",
) -> dict[str, float]:
    """Like `validate`, on synthetic scans: image (C, I, J, K), labels, and where those are unknown.

    Predictions count nowhere where the truth is unknown. `part` is what the keys start with.
    """
    rows = torch.zeros(len(scans), BRATS.n_labels**2 + 1, dtype=torch.float64)
    model.eval()
    for place in range(world.rank, len(scans), world.workers):
        image_CIJK, labels_IJK, unknown_IJK = scans[place]
        probabilities_CIJK = forward(model, image_CIJK) * ~unknown_IJK
        pred_IJK = to_labels(probabilities_CIJK, threshold, model.heads)
        rows[place] = _row(probabilities_CIJK, pred_IJK, labels_IJK, BRATS)
    model.train()
    return means_of_rows(_of_all(rows, world), BRATS, part)


def _row(probabilities_CIJK: Floats, pred_IJK: Labels, ref_IJK: Labels, task: Task) -> torch.Tensor:
    """The table of counts and the loss, flat."""
    loss = soft_dice_loss_scan(probabilities_CIJK, ref_IJK)
    counts = confusion(ref_IJK, pred_IJK, task.n_labels)
    return torch.tensor([*counts.ravel(), loss], dtype=torch.float64)


def _of_all(rows_here: torch.Tensor, world: World) -> torch.Tensor:
    """Every worker's rows."""
    on_device = rows_here.to(world.device)
    world.sum_in_place(on_device)
    return on_device.cpu()


def no_class(task: Task) -> TrainingError:
    """The error for validation data without any class."""
    return TrainingError(
        "validation data: no class in them",
        wanted=f"at least one scan or block with {' or '.join(task.class_names)}",
        do="choose others in prepare.split.validation",
    )


def means_of_rows(rows_here: torch.Tensor, task: Task, part: str = "val") -> dict[str, float]:
    """Means over regions, a row each; `part` is what the keys start with.

    Raises:
        TrainingError: no region has any class.
    """
    rows = rows_here.numpy()
    tables = rows[:, :-1].astype(np.int64).reshape(-1, task.n_labels, task.n_labels)
    if not tables[:, 1:].any():
        raise no_class(task)
    metrics: dict[str, float | None] = {f"{part}/soft_dice_loss": float(rows[:, -1].mean())}
    for name, labels in {**task.class_labels, **task.region_labels}.items():
        counts = [counts_of(table, labels) for table in tables]
        metrics[f"{part}/dice_{name}"] = mean_defined(c.dice for c in counts).value
        if name in task.class_names:
            metrics[f"{part}/sensitivity_{name}"] = mean_defined(
                c.sensitivity for c in counts
            ).value
            metrics[f"{part}/specificity_{name}"] = mean_defined(
                c.specificity for c in counts
            ).value
    # where the data set names no regions, each class is one, so that there is always a score
    for kind, names in (
        ("classes", task.class_names),
        ("regions", task.region_names or task.class_names),
    ):
        means = mean_defined(metrics[f"{part}/dice_{name}"] for name in names)
        metrics[f"{part}/dice_mean_{kind}"] = means.value
    return {key: value for key, value in metrics.items() if value is not None}
