"""Create runs, models and versions exactly once, even if a request or its answer is lost.

MLflow makes a run, a model or a version as often as it is asked, and its client asks again by
itself if an answer is lost or late. So we search by our own id before each try, and once more
afterwards; a second one, an abandoned twin, is closed. A server may carry out a request minutes
later: `twins_left` finds such twins.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Final, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from gliotrail.tracking.client import OWNER_TAG, every_run, is_ours, runs_of

TWIN_TAG: Final = "gliotrail.twin_of"
"""MLflow's id of the run that counts."""
SHA256_TAG: Final = "gliotrail.weights_sha256"
_REPEATS: Final = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_TRIES: Final = 3
_LOCK: Final = threading.RLock()
T = TypeVar("T")


def make_once(look: Callable[[], T | None], make: Callable[[], object]) -> T:
    """The object that `look` finds, made if it isn't there.

    Args:
        look: finds it by our own id, and closes twins.

    Raises:
        MlflowException: the server refuses, or can't be reached; trying again later is safe.
    """
    for n in range(_TRIES):
        found = look()
        if found is not None:
            return found
        try:
            with _asked_once():
                make()
        except MlflowException as error:
            if n == _TRIES - 1 or error.get_http_status_code() < 500:
                raise
            time.sleep(0.5 * 2**n)
    found = look()
    if found is None:
        raise MlflowException("what was made is not there")
    return found


@contextmanager
def _asked_once() -> Iterator[None]:
    """Switch off the client's own retries, which don't look first."""
    with _LOCK:
        before = os.environ.get(_REPEATS)
        os.environ[_REPEATS] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_REPEATS]
            else:
                os.environ[_REPEATS] = before


def the_run(server: MlflowClient, experiment_id: str, own_id: str) -> Run | None:
    """The run with our own id; its twins are closed."""
    found = runs_of(server, experiment_id, own_id)
    for twin in found[1:]:
        _close_twin(server, twin, str(found[0].info.run_id))
    return found[0] if found else None


def _close_twin(server: MlflowClient, twin: Run, of: str) -> None:
    """Set a twin to KILLED and delete it: no process ever wrote to it."""
    run_id = twin.info.run_id
    tags = [RunTag(TWIN_TAG, of), RunTag("gliotrail.ended", f"abandoned twin of run {of}")]
    server.log_batch(run_id, tags=tags)
    server.set_terminated(run_id, "KILLED")
    server.delete_run(run_id)


def the_model(
    server: MlflowClient, experiment_id: str, run_id: str, digest: str
) -> LoggedModel | None:
    """The logged model of a run with these weights; its twins are deleted."""
    ours = _models(server, experiment_id, run_id, digest)
    for twin in ours[1:]:
        if not _is_ready(twin):
            server.delete_logged_model(twin.model_id)
    return ours[0] if ours else None


def _models(
    server: MlflowClient, experiment_id: str, run_id: str, digest: str
) -> list[LoggedModel]:
    """The model that counts, then its twins."""
    found = server.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    ours = [model for model in found if model.tags.get(SHA256_TAG) == digest]
    return sorted(ours, key=lambda m: (not _is_ready(m), m.creation_timestamp, m.model_id))


def _is_ready(model: LoggedModel) -> bool:
    return str(model.status) == "READY"


def the_version(server: MlflowClient, name: str, run_id: str, digest: str) -> ModelVersion | None:
    """The registered version of a run with these weights; its twins are deleted."""
    found = server.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    ours = [version for version in found if version.tags.get(SHA256_TAG) == digest]
    if len(ours) > 1:  # only the whole model has the aliases
        aliased = {str(v) for v in server.get_registered_model(name).aliases.values()}
        ours.sort(key=lambda v: (str(v.version) not in aliased, int(v.version)))
        for twin in ours[1:]:
            server.delete_model_version(name, str(twin.version))
    return ours[0] if ours else None


def close_if_twin(server: MlflowClient, run: Run, own_id: str) -> bool:
    """Close a RUNNING run that no process holds, if it is a twin."""
    first = runs_of(server, run.info.experiment_id, own_id)[0]
    if first.info.run_id == run.info.run_id or not is_ours(first):
        return False  # just made, perhaps
    _close_twin(server, run, str(first.info.run_id))
    return True


def twins_left(server: MlflowClient, name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Twins from requests that were carried out late: a description, and a function to close it.

    Args:
        name: of the registered model.
    """
    for run, own_id in every_run(server, "attributes.status = 'RUNNING'"):
        first = runs_of(server, run.info.experiment_id, own_id)[0] if not is_ours(run) else run
        if first.info.run_id != run.info.run_id and OWNER_TAG not in run.data.tags:
            what = f"run {run.info.run_id}, a twin of {first.info.run_id}"
            yield what, partial(close_if_twin, server, run, own_id)

    experiments = [e.experiment_id for e in server.search_experiments(max_results=1000)]
    pending = f"status = '{LoggedModelStatus.PENDING.to_int()}'"  # as MLflow's database has it
    for model in server.search_logged_models(experiments, pending):
        number, weights = str(model.experiment_id), str(model.tags.get(SHA256_TAG))
        same_models = _models(server, number, str(model.source_run_id), weights)
        if same_models and _is_ready(same_models[0]):
            what = f"model {model.model_id}, a twin of {same_models[0].model_id}"
            yield what, partial(the_model, server, number, str(model.source_run_id), weights)

    def of(version: ModelVersion) -> tuple[str, str]:
        return str(version.run_id), str(version.tags.get(SHA256_TAG))

    versions = [v for v in server.search_model_versions(f"name = '{name}'") if v.run_id]
    for (run_id, digest), same in groupby(sorted(versions, key=of), of):
        numbers = sorted(int(version.version) for version in same)
        if len(numbers) > 1:
            what = f"versions {', '.join(map(str, numbers))} of {name}, of one run"
            yield what, partial(the_version, server, name, run_id, digest)
