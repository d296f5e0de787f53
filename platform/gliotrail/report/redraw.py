"""The pictures of results/ drawn again, such as on a light ground for a paper."""

import json
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from gliotrail.dataset.task import Task
from gliotrail.errors import DataError
from gliotrail.files import csv_rows
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.labels import known_labels
from gliotrail.imaging.nifti import in_ras, read_labels
from gliotrail.imaging.prepared import Prepared, read_labels_patch, read_patch
from gliotrail.report.curves import draw_run
from gliotrail.report.evaluation_charts import draw_measures, draw_volumes
from gliotrail.report.overlays import draw_prediction, pick_slices
from gliotrail.report.sweep_charts import Outcome, draw_rates
from gliotrail.runs.journal import JOURNAL_FILE, RUN_FILE, parse_lines
from gliotrail.segmentation.score import Score


def redrawn(results: Path, prepared: Prepared) -> Iterator[tuple[str, Figure]]:
    """Each picture and its name: curves, learning rates, measures, volumes, held-out cases.

    Cases that `prepare` resampled are left out: their masks are on another grid.

    Raises:
        DataError: the results are not there.
    """
    task = prepared.task
    if not (results / "train" / JOURNAL_FILE).is_file():
        raise DataError("no results", where=results, do="run `dvc repro` first")
    points = parse_lines((results / "train" / JOURNAL_FILE).read_bytes())
    name = json.loads((results / "train" / RUN_FILE).read_bytes())["name"]
    yield "curves", draw_run(points, name, task)
    trials = [
        Outcome(
            {"learning_rate": float(row["learning_rate"]), "patch_size": row["patch_size"]},
            row["status"],
            float(row["score"]) if row["score"] else None,
            int(row["voxels"] or 0),
            epochs=0,
        )
        for row in csv_rows(results / "sweep/trials.csv")
    ]
    if trials:
        yield "learning_rate", draw_rates(trials, "learning rate against validation Dice")
    by_case = json.loads((results / "evaluate/cases.json").read_bytes())
    scores = {name: Score.model_validate(score) for name, score in by_case.items()}
    if scores:
        yield "measures", draw_measures(scores, task)
        yield "volumes", draw_volumes(scores, task)
    for name in scores:
        if not prepared.cases[name].resampled:
            yield name, _prediction(results / f"evaluate/masks/{name}.nii.gz", prepared, name, task)


def _prediction(mask: Path, prepared: Prepared, name: str, task: Task) -> Figure:
    case = prepared.cases[name]
    whole = Box((0, 0, 0), case.ras_shape_vox)
    truth = known_labels(read_labels_patch(case, whole))
    predicted = in_ras(read_labels(mask, codes=task.labels_of_codes)).array
    return draw_prediction(
        read_patch(case, whole, "none"), truth, predicted, pick_slices(truth, 4),
        case.spacing_mm, f"{name}, held out", task=task,
    )  # fmt: skip
