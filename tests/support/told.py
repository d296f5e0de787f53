"""All that MLflow knows of a run, to compare."""

from typing import Any

from mlflow import MlflowClient


def told(server: MlflowClient, run_id: str) -> dict[str, Any]:
    """Plain values. Points are (key, step, value, time)."""
    run = server.get_run(run_id)
    points = [
        (m.key, m.step, m.value, m.timestamp)
        for key in run.data.metrics
        for m in server.get_metric_history(run_id, key)
    ]
    models = server.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    return {
        "points": sorted(points),
        "params": run.data.params,
        "tags": run.data.tags,
        "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "datasets": sorted((d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs),
        "outputs": [model.model_id for model in run.outputs.model_outputs],
        "models": [(model.model_id, str(model.status), model.tags) for model in models],
        "files": files(server, run_id),
    }


def files(server: MlflowClient, run_id: str, folder: str | None = None) -> list[str]:
    """The paths of a run's artifacts."""
    found = []
    for entry in server.list_artifacts(run_id, folder):
        found += files(server, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)
