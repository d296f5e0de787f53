"""The held-out measures of a training, in a run of their own below the training's.

In the training's own run each would be a chart of a single dot, above its curves.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Run

from gliotrail.runs.journal import Point
from gliotrail.tracking.client import ID_TAG, runs_of
from gliotrail.tracking.delivery import log_points
from gliotrail.tracking.experiment_page import HELD_OUT_TAG, SCORE
from gliotrail.tracking.once import make_once, the_run
from gliotrail.tracking.run_page import note_of, page_of, write_note

PREFIX: Final = "test/"
SHOWN: Final = "test/dice_mean_regions"


def record_held_out(server: MlflowClient, of: Run, points: Sequence[Point], time_ms: int) -> None:
    """Log the measures of a training that has ended. It can be repeated."""
    if not points:
        return
    own_id, run_id = _own_id(of), of.info.run_id
    found = make_once(
        lambda: the_run(server, of.info.experiment_id, own_id),
        lambda: server.create_run(
            of.info.experiment_id,
            start_time=time_ms,
            run_name=f"held out: {of.info.run_name}",
            tags={ID_TAG: own_id, "gliotrail.kind": "evaluation", "mlflow.parentRunId": run_id},
        ),
    )
    log_points(server, found.info.run_id, points)
    server.set_terminated(found.info.run_id, "FINISHED", end_time=time_ms)
    dice = next((point.value for point in points if point.key == SHOWN), None)
    if dice is not None:
        server.set_tag(run_id, HELD_OUT_TAG, f"{dice:.3f}")


def held_out(server: MlflowClient, of: Run) -> dict[str, float]:
    """The held-out measures of a training's run; none where it was not evaluated."""
    return {point.key: point.value for point in held_out_points(server, of)}


def held_out_points(server: MlflowClient, of: Run) -> list[Point]:
    """The same with steps and times. Runs of older versions have them among their own points."""
    found = _evaluation(server, of)
    return [
        Point(m.key, m.value, m.step, m.timestamp)
        for run in (of, found)
        if run is not None
        for key in run.data.metrics
        if key.startswith(PREFIX)
        for m in server.get_metric_history(run.info.run_id, key)
    ]


def write_note_with_measures(server: MlflowClient, of: Run, says: Mapping[str, Any]) -> None:
    """Write a training's description again, with the held-out measures."""
    run_id = of.info.run_id
    values = of.data.metrics | held_out(server, of)
    last = [Point(key, value, 0, 0) for key, value in values.items() if key != SCORE]
    epochs = [Point(SCORE, m.value, m.step, 0) for m in server.get_metric_history(run_id, SCORE)]
    folders = (None, "evaluation", "images")
    files = [entry.path for folder in folders for entry in server.list_artifacts(run_id, folder)]
    write_note(server, of, note_of(says, says["ended"], last + epochs, files, page_of(of)))


def _own_id(of: Run) -> str:
    own_id = of.data.tags.get(ID_TAG, of.info.run_id)
    return uuid.uuid5(uuid.NAMESPACE_OID, f"evaluation of {own_id}").hex


def _evaluation(server: MlflowClient, of: Run) -> Run | None:
    return next(iter(runs_of(server, of.info.experiment_id, _own_id(of))), None)
