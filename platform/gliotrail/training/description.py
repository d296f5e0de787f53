"""A training's description in its run from the start: name, params, origin, and the network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gliotrail.imaging.split import fold_of, read_split
from gliotrail.param_types import format_size
from gliotrail.report.figures import figure_png
from gliotrail.report.network import draw_network, draw_table, layer_rows, parameter_table
from gliotrail.runs.lineage import Origin, describe
from gliotrail.segmentation.unet import count_parameters
from gliotrail.segmentation.weights import build
from gliotrail.training.driver import plan_of
from gliotrail.training.inputs import Training, data_paths
from gliotrail.training.preflight import TOO_GOOD, seen_before


def describe_training(
    training: Training, origin: Origin, experiment: str, kind: str, parent: str | None = None
) -> dict[str, Any]:
    """Like `lineage.describe`; `kind` is `train`, `trial`, `pretrain` or `fold`."""
    size, inputs = format_size(training.size_vox), training.inputs()
    trainable, other = count_parameters(build(training.section.model, training.task))
    described = describe(
        origin,
        experiment=experiment,
        kind=kind,
        name=f"{kind} lr={training.learning_rate:.1e} patch={size}",
        params={
            **inputs["train"],
            "channels": ", ".join(training.task.channel_names),
            "classes": ", ".join(training.task.class_names),
            "regions": ", ".join(training.task.region_names),
            "threshold": training.threshold,
            "steps": plan_of(training).steps,
            "parameters_trainable": trainable,
            "parameters_other": other,
        },
        inputs=inputs,
        data=data_paths(size) if training.prepared else [],
        parent=parent,
    )
    return described | {"split": _split_of(training)} if training.prepared else described


def _split_of(training: Training) -> str:
    """The split in one line."""
    assert training.prepared is not None
    split = read_split(training.prepared)
    if training.fold is not None:
        split = fold_of(split, *training.fold)
    known = seen_before(training, split)
    blocks = [region.case for region in split.validation if region.box]
    parts = {
        "training": split.training,
        "validation": [region.case for region in split.validation if not region.box],
        "held out": split.test,
    }
    lines = [f"{name} {_few(cases)}" for name, cases in parts.items() if cases]
    lines += [f"validation a block of {case}" for case in blocks]
    return "; ".join([*lines, *([f"{TOO_GOOD} {_few(known)}"] if known else [])])


def _few(cases: Sequence[str]) -> str:
    return ", ".join(cases) if len(cases) <= 3 else f"{len(cases)} cases"


def starting_artifacts(training: Training) -> dict[str, bytes]:
    """Files by name: params.yaml, dvc.lock, a table and a drawing of the network."""
    model = training.section.model
    task = training.task
    rows = layer_rows(build(model, task))
    if model.name == "unet3d":
        drawing = draw_network(
            model.depth, model.base_filters, len(task.channels), len(task.classes)
        )
    else:
        drawing = draw_table(rows, f"{model.name}, depth {model.depth}")
    files = {
        "network.txt": parameter_table(rows).encode(),
        "network.png": figure_png(drawing),
        "task.json": task.model_dump_json(indent=1).encode(),
    }
    for path in (Path("params.yaml"), Path("dvc.lock")):
        if path.is_file():
            files[path.name] = path.read_bytes()
    return files
