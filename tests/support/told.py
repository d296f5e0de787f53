"""A fresh database of MLflow's, and all that MLflow knows of a run, to compare."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.environment import in_state

if TYPE_CHECKING:  # MLflow takes seconds to import
    from mlflow import MlflowClient


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh SQLite file, to copy as `mlflow.db`; to make one takes seconds."""
    import tests.support.database  # noqa: F401 - makes SQLite faster
    from gliotrail.tracking.client import client

    state = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patched:
        in_state(state, patched)
        client()
    return state / "mlflow.db"


@pytest.fixture
def server(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow on a SQLite file of the test's own, at its default address."""
    from gliotrail.tracking.client import client

    state = tmp_path / "state"
    state.mkdir()
    shutil.copy(database, state)
    in_state(state, monkeypatch)
    return client()


@pytest.fixture
def no_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been trained in this checkout; what was would be delivered, too."""
    monkeypatch.setattr("gliotrail.tracking.restore.OUTPUTS", ())


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
