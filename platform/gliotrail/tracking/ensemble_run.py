"""An ensemble as a registered model: one version, whose run names the runs of its members."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from gliotrail.errors import TrackingError
from gliotrail.files import sha256
from gliotrail.runs.addresses import shown, tracking_uri
from gliotrail.tracking.champion import describe_version
from gliotrail.tracking.client import ID_TAG, client, one_line
from gliotrail.tracking.once import SHA256_TAG, make_once, the_run
from gliotrail.tracking.registry import log_model, register

MEMBERS_TAG: Final = "gliotrail.members"
"""MLflow's ids of the members' runs."""
_KEPT: Final = ("task", "channels", "classes", "regions", "threshold")
"""Params that all members have in common, and that a model's page shows."""


def register_ensemble(file: Path, members: Sequence[Path]) -> ModelVersion:
    """Register a weights file of several networks. It can be repeated.

    Raises:
        TrackingError: no run ended with a member's weights, or MLflow can't be reached.
    """
    from gliotrail.segmentation.weights import read  # torch takes seconds to import

    with one_line():
        server = client()
        runs = [_run_of(server, member) for member in members]
        first, ids = runs[0], [run.info.run_id for run in runs]
        own_id = uuid.uuid5(uuid.NAMESPACE_OID, sha256(file)).hex
        run = make_once(
            lambda: the_run(server, first.info.experiment_id, own_id),
            lambda: server.create_run(
                first.info.experiment_id,
                run_name=f"ensemble of {len(ids)}",
                tags={ID_TAG: own_id, "gliotrail.kind": "ensemble", MEMBERS_TAG: ",".join(ids)},
            ),
        )
        run_id, params = run.info.run_id, first.data.params
        for key in params.keys() & set(_KEPT) - run.data.params.keys():
            server.log_param(run_id, key, params[key])
        threshold = float(params.get("threshold", 0.5))
        model_id = log_model(server, first.info.experiment_id, run_id, file, threshold)
        version = register(server, run_id, model_id, file, {MEMBERS_TAG: ",".join(ids)})
        server.set_terminated(run_id, "FINISHED")
        describe_version(server, version, read(file)[1].task)
        return version


def _run_of(server: MlflowClient, weights: Path) -> Run:
    """The run that ended with a weights file."""
    digest = sha256(weights)
    experiments = [e.experiment_id for e in server.search_experiments(max_results=1000)]
    for model in server.search_logged_models(experiments, f"tags.`{SHA256_TAG}` = '{digest}'"):
        if model.source_run_id:
            return server.get_run(model.source_run_id)
    do = "train it with this MLflow first, or leave out --register"
    where = shown(tracking_uri())
    raise TrackingError(f"no run that ended with {weights}", where=where, do=do)
