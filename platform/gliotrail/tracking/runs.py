"""From a run's folder to MLflow: each point exactly once, however often delivery is tried.

The folder is the truth (see `journal`); MLflow is told of what is final in it. A run is known by
its own id, kept in the tag `gliotrail.id`, whatever id the server gave it.
"""

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from gliotrail.errors import TrackingError
from gliotrail.files import write_json
from gliotrail.places import state_dir
from gliotrail.tracking.journal import MODEL_FILE, Point, RunFolder
from gliotrail.tracking.registry import log_model

ID_TAG: Final = "gliotrail.id"
_BATCH: Final = 1000
_LONGEST_PARAM: Final = 6000


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in this checkout's `.gliotrail/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state_dir() / 'mlflow.db'}"


def client() -> MlflowClient:
    """A client of `tracking_uri()`; a new SQLite file is set up first, by one process alone."""
    # a training must not hang on a server that does: MLflow's own defaults wait for many minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)  # parts of MLflow make clients of their own
    if not uri.startswith("sqlite"):
        return MlflowClient(uri)
    state_dir().mkdir(parents=True, exist_ok=True)
    with locked(state_dir() / "mlflow.lock"):
        made = MlflowClient(uri)
        made.search_experiments(max_results=1)
        return made


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes of this machine; the kernel lets go of a dead one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def experiment_id(server: MlflowClient, name: str) -> str:
    """The experiment of that name, made if need be; local artifacts lie in `.gliotrail/`."""
    found = server.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = tracking_uri().startswith("sqlite")
    location = (state_dir() / "artifacts" / name).as_uri() if local else None
    try:
        return str(server.create_experiment(name, artifact_location=location))
    except MlflowException:  # another process was first
        found = server.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def find_run(server: MlflowClient, experiment: str, run_id: str) -> Run | None:
    """The MLflow run that carries a run's own id."""
    found = server.search_runs(
        [experiment_id(server, experiment)], f"tags.`{ID_TAG}` = '{run_id}'", max_results=1
    )
    return found[0] if found else None


def existing_run(server: MlflowClient, experiment: str, run_id: str) -> Run:
    """Like `find_run`, for a run that must be there.

    Raises:
        TrackingError: there is none.
    """
    found = find_run(server, experiment, run_id)
    if found is None:
        raise TrackingError(
            f"no run {run_id} in experiment {experiment}",
            where=_shown(tracking_uri()),
            do="deliver it with `gliotrail runs sync`",
        )
    return found


def deliver(run: RunFolder, server: MlflowClient) -> str:
    """Tell MLflow all that is final in a run's folder and was not told before.

    Returns:
        MLflow's id of the run.

    Raises:
        MlflowException: the server refuses or can't be reached; try again later.
    """
    with locked(run.root / "delivery.lock"):
        told = _Told(run)
        description = run.describe()
        if told.run_id is None:
            told.save(run_id=_make_run(server, run, description))
        run_id = str(told.run_id)
        history = run.history()
        names = [checkpoint.folder.name for checkpoint in history]
        start = names.index(told.upto) + 1 if told.upto in names else 0
        for checkpoint in history[start:]:
            log_points(server, run_id, checkpoint.points())
            for picture in checkpoint.pictures():
                _log_picture(server, run_id, picture, checkpoint.step)
            told.save(upto=checkpoint.folder.name)
        ended = run.ended()
        if (run.root / MODEL_FILE).exists() and not told.model:
            experiment = experiment_id(server, description["experiment"])
            told.save(model=log_model(server, experiment, run_id, run.root / MODEL_FILE))
        if ended != told.ended:
            _set_status(server, run_id, ended)
            told.save(ended=ended)
        return run_id


class _Told:
    """What a tracking server was told of a run so far; kept beside the run, one file a server."""

    def __init__(self, run: RunFolder) -> None:
        address = hashlib.sha256(tracking_uri().encode()).hexdigest()[:12]
        self._path = run.root / "delivered" / f"{address}.json"
        self._values = json.loads(self._path.read_text()) if self._path.is_file() else {}

    @property
    def run_id(self) -> str | None:
        return self._values.get("run_id")

    @property
    def upto(self) -> str | None:
        return self._values.get("upto")

    @property
    def ended(self) -> dict[str, Any] | None:
        return self._values.get("ended")

    @property
    def model(self) -> str | None:
        return self._values.get("model")

    def save(self, **changes: Any) -> None:
        self._values |= changes
        write_json(self._path, self._values)


def log_points(server: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Log metrics with the times they already have: again is the same as once."""
    metrics = [Metric(p.key, p.value, p.time_ms, p.step) for p in points]
    for start in range(0, len(metrics), _BATCH):
        server.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as `train.model.depth` -> `2`, as MLflow wants them."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)[:_LONGEST_PARAM]
    return flat


def _make_run(server: MlflowClient, run: RunFolder, description: Mapping[str, Any]) -> str:
    found = find_run(server, description["experiment"], description["id"])
    if found is None:
        parent = description.get("parent")
        above = existing_run(server, description["experiment"], parent) if parent else None
        found = server.create_run(
            experiment_id(server, description["experiment"]),
            start_time=description["started_ms"],
            run_name=description["name"],
            tags={
                ID_TAG: description["id"],
                **description["tags"],
                **({"mlflow.parentRunId": above.info.run_id} if above else {}),
            },
        )
    run_id = str(found.info.run_id)
    params = [Param(key, value) for key, value in flatten(description["params"]).items()]
    for start in range(0, len(params), 100):
        server.log_batch(run_id, params=params[start : start + 100])
    datasets = [
        DatasetInput(
            Dataset(d["name"], d["digest"], "dvc", json.dumps({"uri": d["path"]})),
            [InputTag("mlflow.data.context", d["context"])],
        )
        for d in description["datasets"]
    ]
    if datasets:
        server.log_inputs(run_id, datasets=datasets)
    for path in sorted((run.root / "artifacts").glob("*")):
        server.log_artifact(run_id, str(path))
    return run_id


def _log_picture(server: MlflowClient, run_id: str, path: Path, step: int) -> None:
    """As an image with a step, so that MLflow's slider moves through training."""
    with Image.open(path) as image:
        server.log_image(run_id, image.convert("RGB"), key=path.stem, step=step)


def _set_status(server: MlflowClient, run_id: str, ended: Mapping[str, Any] | None) -> None:
    if ended is None:
        server.update_run(run_id, status="RUNNING")
        return
    tags = [RunTag("gliotrail.ended", ended["reason"])]
    server.log_batch(run_id, tags=tags)
    server.set_terminated(run_id, ended["status"], end_time=ended["time_ms"])


def _shown(uri: str) -> str:
    """A tracking address without a password."""
    head, at, tail = uri.rpartition("@")
    return f"{head.partition('://')[0]}://...@{tail}" if at else uri


class Courier:
    """Delivers runs from a thread beside the training, which never waits for a server.

    Runs are told in their order: a sweep before its trials.
    """

    def __init__(self, runs: Sequence[RunFolder], every_s: float = 1.0) -> None:
        self._runs, self._every_s = runs, every_s
        self._closing = threading.Event()
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        told: dict[Path, object] = {}
        pause_s = self._every_s
        while True:
            last = self._closing.is_set()
            try:
                for run in self._runs:
                    now = _progress_of(run)
                    if now is not None and told.get(run.root) != now:
                        deliver(run, client())
                        told[run.root] = now
            except Exception as error:  # noqa: BLE001 - whatever a server does, training goes on
                self.problem = f"{type(error).__name__}: {error}".split("\n")[0]
                pause_s = min(2 * pause_s, 60.0)
            else:
                self.problem, pause_s = None, self._every_s
            if last:
                return
            self._closing.wait(pause_s)

    def close(self, timeout_s: float = 30.0) -> str | None:
        """Deliver what is left, within a time.

        Returns:
            None, or why it could not all be delivered; `gliotrail runs sync` does it later.
        """
        self._closing.set()
        self._thread.join(timeout_s)
        return "the tracking server hangs" if self._thread.is_alive() else self.problem


def _progress_of(run: RunFolder) -> object:
    """Changes whenever there is something to tell; None before the run began."""
    if not (run.root / "run.json").exists():
        return None
    manifests = sum(1 for _ in run.root.glob("checkpoints/*/manifest.json"))
    return manifests, run.ended(), (run.root / MODEL_FILE).exists()
