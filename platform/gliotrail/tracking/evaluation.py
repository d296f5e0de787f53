"""What an evaluation adds to a training's run, and to the registry. It can be repeated."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion

from gliotrail.tracking.registry import MODEL, download_weights, log_model, promote, register
from gliotrail.tracking.runs import client, existing_run


def record_evaluation(
    experiment: str,
    run: Mapping[str, Any],
    weights: Path,
    points: Mapping[str, float],
    files: Sequence[Path],
    judged_on: str,
    rescore: Callable[[Path], float],
) -> str:
    """Log test scores and files, register the model, and see whether it is the new champion.

    The run's status is not touched. Points get the model's step and the time the run ended, so
    that logging them again is the same as once.

    Args:
        run: what `results/train/run.json` says.
        judged_on: digest of the validation data and of the measures' version.
        rescore: the validation score of another weights file.

    Returns:
        one line to show.

    Raises:
        TrackingError: MLflow doesn't know the run.
    """
    mlflow = client()
    found = existing_run(mlflow, experiment, run["id"])
    run_id, ended = found.info.run_id, run["ended"]
    step, score = ended["summary"]["step"], ended["summary"]["score"]
    metrics = [Metric(key, value, ended["time_ms"], step) for key, value in points.items()]
    mlflow.log_batch(run_id, metrics=metrics)
    for path in files:
        mlflow.log_artifact(run_id, str(path), "evaluation")

    def rescore_version(holder: ModelVersion) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return rescore(download_weights(mlflow, holder, Path(folder)))

    model_id = log_model(mlflow, found.info.experiment_id, run_id, weights)
    version = register(mlflow, run_id, model_id, weights, {"gliotrail.id": run["id"]})
    won = promote(mlflow, version, score, judged_on, rescore_version)
    what = "champion" if won else "the champion stays the one before"
    return f"{MODEL} version {version.version}: validation Dice {score:.3f}, {what}"
