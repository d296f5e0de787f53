"""What an evaluation adds to a training's run, and to the registry. It can be repeated."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from gliotrail.paths import state_dir
from gliotrail.runs.journal import Point, RunFolder
from gliotrail.tracking.client import SCORE, client, existing_run, one_line
from gliotrail.tracking.delivery import deliver, log_points
from gliotrail.tracking.registry import (
    MODEL,
    download_weights,
    log_model,
    promote,
    register,
)
from gliotrail.tracking.run_page import note_of, page_of, write_note

TABLE: Final = "table.json"
"""Of the files, a table that MLflow's pages show as one."""


def record_evaluation(
    run: Mapping[str, Any],
    weights: Path,
    measures: Mapping[str, float],
    files: Sequence[Path],
    judged_on: str,
    rescore: Callable[[Path], float],
) -> str:
    """Log test scores and files, register the model, and see whether it is the new champion.

    The run's status is not touched. Scores get the model's step and the time the run ended, so
    that logging them again is the same as once.

    Args:
        run: what `results/train/run.json` says.
        judged_on: digest of the validation data and of the measures' version.
        rescore: the validation score of another weights file.

    Returns:
        one line to show.

    Raises:
        TrackingError: MLflow can't be reached, or doesn't know the run.
    """
    summary, time_ms = run["ended"]["summary"], run["ended"]["time_ms"]
    score = float(summary["score"])
    points = [Point(key, value, summary["step"], time_ms) for key, value in measures.items()]
    with one_line():
        server = client()
        folder = RunFolder(state_dir() / "runs" / run["tags"]["gliotrail.inputs"])
        if folder.has_begun():  # it is here that it was trained, perhaps while MLflow was away
            deliver(folder, server)
        found = existing_run(server, run["experiment"], run["id"])
        run_id = found.info.run_id
        log_points(server, run_id, points)
        for path in files:
            server.log_artifact(run_id, str(path), "evaluation")
            if path.name == TABLE:  # as `mlflow.log_table` tells of one, which appends if repeated
                table = [{"path": f"evaluation/{TABLE}", "type": "table"}]
                server.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(table))

        def rescore_version(holder: ModelVersion) -> float:
            with tempfile.TemporaryDirectory() as folder:
                return rescore(download_weights(server, holder, Path(folder)))

        _write_note(server, server.get_run(run_id), run)
        experiment = found.info.experiment_id
        model_id = log_model(server, experiment, run_id, weights, run["params"]["threshold"])
        version = register(server, run_id, model_id, weights, {"gliotrail.id": run["id"]})
        won = promote(server, version, score, judged_on, rescore_version)
    what = "champion" if won else "the champion stays the one before"
    return f"{MODEL} version {version.version}: validation Dice {score:.3f}, {what}"


def _write_note(server: MlflowClient, known: Run, says: Mapping[str, Any]) -> None:
    """The run's description again, with the measures."""
    run_id = known.info.run_id
    last = [Point(key, value, 0, 0) for key, value in known.data.metrics.items() if key != SCORE]
    epochs = [Point(SCORE, m.value, m.step, 0) for m in server.get_metric_history(run_id, SCORE)]
    folders = (None, "evaluation", "images")
    files = [entry.path for folder in folders for entry in server.list_artifacts(run_id, folder)]
    write_note(server, known, note_of(says, says["ended"], last + epochs, files, page_of(known)))
