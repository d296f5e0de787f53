"""MLflow's experiments and runs. A run is known by its own id, kept in the tag `gliotrail.id`."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from gliotrail.errors import TrackingError
from gliotrail.files import locked
from gliotrail.paths import state_dir
from gliotrail.runs.addresses import shown, tracking_uri

ID_TAG: Final = "gliotrail.id"


def client() -> MlflowClient:
    """A client of `tracking_uri()`; a new SQLite file is set up first, by one process alone."""
    # a training must not hang on a server that does: MLflow's own defaults wait for many minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # of a database that is away it logs a traceback a call, as errors; what it raises is told here
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)  # parts of MLflow make clients of their own
    if not uri.startswith("sqlite"):
        return MlflowClient(uri)
    with locked(state_dir() / "mlflow.lock"):
        made = MlflowClient(uri)
        made.search_experiments(max_results=1)
        return made


@contextmanager
def one_line() -> Iterator[None]:
    """Tell what MLflow raises in one line.

    Raises:
        TrackingError: the server refuses or can't be reached.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        got = f"{type(error).__name__}: {error}".split("\n")[0]
        raise TrackingError("MLflow", where=shown(tracking_uri()), got=got) from error


def experiment_id(server: MlflowClient, name: str) -> str:
    """The experiment of that name, made if need be. What a person wrote of it stays."""
    found = server.get_experiment_by_name(name) or _make_experiment(server, name)
    number = str(found.experiment_id)
    for key, value in tags_of(number).items():
        if key not in found.tags:
            server.set_experiment_tag(number, key, value)
    return number


def _make_experiment(server: MlflowClient, name: str) -> Experiment:
    """Where MLflow is a database and no server, its artifacts lie in `.gliotrail/` too."""
    local = "sql" in tracking_uri().partition(":")[0]
    location = (state_dir() / "artifacts" / name).as_uri() if local else None
    try:
        return server.get_experiment(server.create_experiment(name, artifact_location=location))
    except MlflowException:  # another process was first
        found = server.get_experiment_by_name(name)
        if found is None:
            raise
        return found


def find_run(server: MlflowClient, experiment: str, own_id: str) -> Run | None:
    """The MLflow run that carries a run's own id."""
    found = server.search_runs(
        [experiment_id(server, experiment)], f"tags.`{ID_TAG}` = '{own_id}'", max_results=1
    )
    return found[0] if found else None


def existing_run(server: MlflowClient, experiment: str, own_id: str) -> Run:
    """Like `find_run`, for a run that must be there.

    Raises:
        TrackingError: there is none.
    """
    found = find_run(server, experiment, own_id)
    if found is None:
        raise TrackingError(
            f"no run {own_id} in experiment {experiment}",
            where=shown(tracking_uri()),
            do="deliver it with `gliotrail runs sync`",
        )
    return found


SCORE: Final = "val/dice_mean_regions"
"""What runs are sorted and epochs judged by, as `segmentation.loop.SCORE`, which needs torch."""
VIEW_TAG: Final = "mlflow.sharedViewState.gliotrail"
VIEW_NAME: Final = "best validation Dice first"
TRAINING: Final = "workflowType=machine_learning"
"""Ends an address within MLflow's pages that are for trainings; without it they are for GenAI."""
BEST_FIRST: Final = f"viewStateShareKey=gliotrail&{TRAINING}"
"""Ends the address of an experiment's runs that opens the view."""
COLUMNS: Final = (
    f"metrics.`{SCORE}`",
    "metrics.`test/dice_mean_regions`",
    "params.`learning_rate`",
    "params.`patch_size`",
    "params.`init`",
    "tags.`gliotrail.kind`",
)


def tags_of(number: str) -> dict[str, str]:
    """The tags of an experiment: that it is for trainings, a description, and the view."""
    best_first = f"[Best validation Dice first](#/experiments/{number}/runs?{BEST_FIRST})"
    state = {"orderByKey": COLUMNS[0], "orderByAsc": False, "selectedColumns": COLUMNS}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"{best_first}: `{SCORE}`, the mean of WT, TC and ET.",
        VIEW_TAG: json.dumps({"name": VIEW_NAME, "createdAt": 0, "state": json.dumps(state)}),
    }
