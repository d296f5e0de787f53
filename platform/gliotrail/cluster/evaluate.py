"""Stage `evaluate`: segment and score the held-out patients, register the model, name the champion.

Every measure comes from the saved label map, as counts without epsilon, so that scoring the saved
mask gives `metrics.json` again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from gliotrail.cluster.case_tasks import each_case
from gliotrail.cluster.evaluate_case import (
    FOLDERS,
    Evaluated,
    Evaluation,
    HeldOut,
    Judged,
    Judging,
)
from gliotrail.cluster.shared_files import scratch_folder, share
from gliotrail.dataset.task import Task
from gliotrail.errors import DataError
from gliotrail.files import replacing, write_json
from gliotrail.imaging.formats.decathlon import read_dataset
from gliotrail.imaging.geometry import Box, vox3
from gliotrail.imaging.prepared import Prepared, load_prepared
from gliotrail.imaging.split import Region
from gliotrail.own_parts import short_name
from gliotrail.params import Evaluate, Params
from gliotrail.progress import progress, say
from gliotrail.report.evaluation_charts import write_charts
from gliotrail.runs.journal import MODEL_FILE
from gliotrail.runs.lineage import digest_of
from gliotrail.segmentation.loop import SCORE
from gliotrail.segmentation.metrics import mean_defined
from gliotrail.segmentation.score import Score, own_measures
from gliotrail.segmentation.validation import means_of_rows
from gliotrail.segmentation.weights import load
from gliotrail.tracking.evaluation_record import record_evaluation

_TOLD: Final = ("dice", "sensitivity", "specificity", "hd95_mm")
_MEASURES: Final = (*_TOLD, "specificity_foreground")
_HASH_LENGTH: Final = 16
MEASURES_VERSION: Final = 1
"""Raised when a measure's definition changes: champions are then judged again."""


def evaluate(
    params: Params,
    prepared_folder: Path = Path("data/prepare"),
    raw: Path = Path("data/fetch"),
    trained: Path = Path("results/train"),
    out: Path = Path("results/evaluate"),
) -> None:
    """Write masks, measures, pictures and viewers to `out`; then record them in MLflow.

    The cluster's workers segment the patients; see `case_tasks`.

    Raises:
        ParamsError: a measure of your own that doesn't work.
        DataError, WeightsError: scans or weights that can't be used.
        ClusterError: the cluster can't give a worker.
        TrackingError: the outputs are written, but the run is not in MLflow.
    """
    section = params.evaluate
    own = tuple(own_measures(section.measures))
    prepared = load_prepared(prepared_folder.resolve())
    if not prepared.split.test:
        say("evaluate: prepare.split.test names no patient: the model is registered unmeasured")
    task, dataset = prepared.task, read_dataset(raw.resolve())
    scans = {case.name: case for case in dataset.cases}
    if gone := set(prepared.split.test) - set(scans):
        do = "run `dvc repro prepare` again"
        raise DataError(f"no scan of {', '.join(sorted(gone))}", where=raw, do=do)
    weights = share((trained / MODEL_FILE).resolve())
    patients = [HeldOut(prepared.cases[name], scans[name]) for name in prepared.split.test]
    came: dict[str, Evaluated] = {}
    with (
        replacing(out) as partial,
        scratch_folder() as scratch,
        progress(len(patients), "evaluate", "cases") as done,
    ):
        for kind in FOLDERS:
            (partial / kind).mkdir(parents=True)

        def keep(patient: HeldOut, made: Evaluated) -> None:
            made.files.copy_into(partial)
            came[patient.case.name] = made
            done(1)

        evaluation = Evaluation(
            weights,
            section.threshold,
            task,
            prepared.intensities,
            dataset.channel_order,
            scratch,
            section.measures,
        )
        each_case(evaluation, patients, keep, "evaluate")
        by_name = {name: came[name] for name in prepared.split.test}  # they end in any order
        scores = {name: made.score for name, made in by_name.items()}
        if scores:
            looks = {name: made.look for name, made in by_name.items()}
            confusion_rp = sum(made.confusion_rp for made in by_name.values())
            write_charts(partial / "charts", scores, looks, np.asarray(confusion_rp), task)
        else:
            (partial / "charts").mkdir()
        losses = {name: made.loss for name, made in by_name.items()}
        measured = summary(scores, losses, task, own)
        write_json(partial / "metrics.json", measured)
        (partial / "measures").mkdir()
        for name, row in rows_of(measured, task, own).items():
            write_json(partial / "measures" / f"{name}.json", row)
        by_case = {name: s.model_dump(mode="json") for name, s in scores.items()}
        write_json(partial / "cases.json", by_case)
    record(trained, out, prepared, section)


def summary(
    scores: Mapping[str, Score], losses: Mapping[str, float], task: Task, own: Sequence[str] = ()
) -> dict[str, Any]:
    """`metrics.json`: means over the test cases, and how many of them have a defined Dice.

    Args:
        own: the names of your own measures.
    """
    values: dict[str, Any] = {
        "cases": len(scores),
        "classes": list(task.class_names),
        "regions": list(task.region_names),
        "soft_dice_loss": mean_defined(losses.values()).value,
    }
    for kind, names in (("classes", task.class_names), ("regions", task.region_names)):
        for name in names:
            of = [getattr(s, kind)[name] for s in scores.values()]
            values[name] = {
                measure: mean_defined(getattr(m, measure) for m in of).value
                for measure in _MEASURES
            }
            values[name] |= {key: mean_defined(m.own[key] for m in of).value for key in own}
            values[name]["defined"] = mean_defined(m.dice for m in of).n
        of_each = [values[name]["dice"] for name in names or task.class_names]
        values[f"mean_{kind}"] = mean_defined(of_each).value
    return values


def rows_of(
    metrics: Mapping[str, Any], task: Task, own: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """`metrics.json` as the rows of `dvc metrics show`: a file a row, the same few keys in each."""
    rows = {
        name: {key: metrics[name][key] for key in (*_TOLD, *own)}
        | {"cases": metrics[name]["defined"]}
        for name in task.names
    }
    means = {f"mean_{kind}": {"dice": metrics[f"mean_{kind}"]} for kind in ("classes", "regions")}
    means["mean_classes"]["soft_dice_loss"] = metrics["soft_dice_loss"]
    return rows | means


def record(trained: Path, out: Path, prepared: Prepared, section: Evaluate) -> None:
    """Add the scores to the training's run, register the model, and choose the champion.

    It can be repeated: nothing is logged twice, and the run keeps its status.

    Raises:
        TrackingError: the run is not in MLflow.
    """
    run = json.loads((trained / "run.json").read_text())
    metrics = json.loads((out / "metrics.json").read_text())
    shown = [
        path for of in ("pictures", "viewers", "charts") for path in sorted((out / of).iterdir())
    ]
    line = record_evaluation(
        run,
        trained / MODEL_FILE,
        measures_of(metrics, prepared.task, tuple(map(short_name, section.measures))),
        [*shown, out / "metrics.json", out / "cases.json"],
        judged_on=_judged_on(prepared, prepared.split.validation, section.threshold),
        trained_on=trained_on(prepared),
        rescore=lambda weights, seen: _rescored(
            trained / MODEL_FILE, weights, prepared, unseen(prepared, seen), section.threshold
        ),
        caveat="; ".join(_caveats(prepared)),
    )
    say(line)


def _caveats(prepared: Prepared) -> Iterator[str]:
    """Why the figures are not reliable, if so."""
    validation = prepared.split.validation
    if len(validation) == 1 and validation[0].box is not None:
        yield f"validation is one block of one patient, {validation[0].case}: little to go by"
    if not prepared.split.test:
        yield "it is not measured on held-out patients: prepare.split.test names none"


def measures_of(
    metrics: Mapping[str, Any], task: Task, own: Sequence[str] = ()
) -> dict[str, float]:
    """The defined values of `metrics.json` for MLflow: `test/dice_WT` and so on."""
    points = {"test/soft_dice_loss": metrics["soft_dice_loss"]}
    for name in task.names:
        for measure in (*_TOLD, *own):
            points[f"test/{measure}_{name}"] = metrics[name][measure]
    for kind in ("classes", "regions"):
        points[f"test/dice_mean_{kind}"] = metrics[f"mean_{kind}"]
    return {key: float(value) for key, value in points.items() if value is not None}


def _judged_on(prepared: Prepared, regions: Sequence[Region], threshold: float) -> str:
    """A digest of the validation data, of the task, and of the measures' version."""
    inputs = [
        [region.case, str(region.box), prepared.cases[region.case].image_sha256,
         prepared.cases[region.case].label_sha256]
        for region in regions
    ]  # fmt: skip
    task = prepared.task.model_dump(mode="json", include={"channels", "classes", "regions"})
    return digest_of([MEASURES_VERSION, threshold, inputs, task])


def trained_on(prepared: Prepared) -> str:
    """The training cases by their files' hashes, with the box that was kept out of each, if any."""
    parts = []
    for name in prepared.split.training:
        box = prepared.split.kept_out.get(name)
        kept_out = f":{','.join(map(str, (*box.start_vox, *box.stop_vox)))}" if box else ""
        parts.append(f"{prepared.cases[name].image_sha256[:_HASH_LENGTH]}{kept_out}")
    return " ".join(sorted(parts))


def unseen(prepared: Prepared, digests: str | None) -> list[Region]:
    """The validation data that a model with another `trained_on` was not trained on.

    Empty if it has no `trained_on`.
    """
    if digests is None:
        return []
    kept_out = {digest: box for digest, _, box in (p.partition(":") for p in digests.split())}

    def is_new(region: Region) -> bool:
        box = kept_out.get(prepared.cases[region.case].image_sha256[:_HASH_LENGTH])
        if not box:
            return box is None
        ends = [int(end) for end in box.split(",")]
        clear = Box(vox3(ends[:3]), vox3(ends[3:]))
        return region.box is not None and region.box.meet(clear) == region.box

    return [region for region in prepared.split.validation if is_new(region)]


def _rescored(
    ours: Path, theirs: Path, prepared: Prepared, regions: Sequence[Region], threshold: float
) -> tuple[float, float, str] | None:
    """The scores of two models on the same validation data, and those data's digest.

    None if there are no such data, or the models have different channels or classes.
    """
    if not regions:
        return None
    first_task, other = (load(weights)[1].task for weights in (ours, theirs))
    names = first_task.channel_names, first_task.class_names
    if names != (other.channel_names, other.class_names):
        return None
    models = [share(weights.resolve()) for weights in (ours, theirs)]
    rows: dict[tuple[int, Region], list[float]] = {}
    with progress(2 * len(regions), "judge the champion", "scans") as done:

        def keep(judged: Judged, row: list[float]) -> None:
            rows[models.index(judged.weights), judged.region] = row
            done(1)

        each_case(
            Judging(prepared.task, threshold),
            [Judged(m, prepared.cases[r.case], r) for m in models for r in regions],
            keep,
            "judge the champion",
        )
    first, second = (
        means_of_rows(
            torch.tensor([rows[n, region] for region in regions], dtype=torch.float64),
            prepared.task,
        )[SCORE]
        for n in range(2)
    )
    return first, second, _judged_on(prepared, regions, threshold)
