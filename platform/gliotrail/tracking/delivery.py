"""From a run's folder to MLflow: everything exactly once, however often delivery is tried.

The folder is the truth (see `journal`); what is final in it goes to MLflow. Each call here can be
repeated (MLflow identifies a metric by its time as well, a file by its name), or looks first. A
note follows each call, so a delivery that is interrupted anywhere only repeats calls.
"""

import json
import math
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from gliotrail.files import locked, sha256, write_json
from gliotrail.runs.code_snapshot import code_dir
from gliotrail.runs.journal import (
    MODEL_FILE,
    TRACEBACK_FILE,
    Checkpoint,
    Point,
    RunFolder,
    parse_lines,
    resume_tags,
)
from gliotrail.runs.local_runs import notes_path, read_notes
from gliotrail.runs.owner import is_alive, owner_of
from gliotrail.tracking.client import (
    ID_TAG,
    OWNER_TAG,
    STATUS_TAG,
    existing_run,
    experiment_id,
)
from gliotrail.tracking.names import mlflow_name
from gliotrail.tracking.once import make_once, the_run
from gliotrail.tracking.registry import log_model
from gliotrail.tracking.run_page import note_of_folder, note_tags, page_of

HEARTBEAT_TAG: Final = "gliotrail.heartbeat"
"""The heartbeat of the run's process; only the first of its runs has the tag."""
REAPED_TAG: Final = "gliotrail.reaped"
"""Why another process closed the run."""
STOP_TAG: Final = "gliotrail.stop"
"""A request to stop from another machine; the run's process removes it."""
NOT_FINITE_TAG: Final = "gliotrail.not_finite"
"""Each metric's first NaN or infinity: MLflow stores infinity as the largest number."""
PARENT_TAG: Final = "mlflow.parentRunId"
_BATCH: Final = 1000
_THRESHOLD: Final = 0.5  # for runs of versions that recorded none
_LONGEST_TAG: Final = 5000
_LONGEST_PARAM: Final = 6000
_SMALL_PX: Final = 1280
"""Legible in MLflow's full-screen view, too."""


def deliver(
    run: RunFolder,
    server: MlflowClient,
    stop: Callable[[], bool] = lambda: False,
    above: Mapping[str, str] | None = None,
) -> str:
    """Deliver all that is final in a run's folder and not in MLflow yet.

    Args:
        stop: called before each checkpoint; if true, the rest is left for another time.
        above: MLflow's ids of runs by our own; a parent that is not in it is looked up.

    Returns:
        MLflow's id of the run.

    Raises:
        MlflowException: the server refuses or can't be reached; try again later.
        TrackingError: the folder is damaged, or the parent run is not in MLflow.
    """
    with locked(run.root / "delivery.lock"):
        notes, delivered, description = notes_path(run), read_notes(run), run.describe()
        same = "run_id" in delivered and delivered.get("id", description["id"]) == description["id"]
        seen = _on_server(server, delivered["run_id"]) if same else None
        if seen is None:
            delivered = {}  # no run yet, a new database at the same address, or a deleted run

        def note(**changes: Any) -> None:
            delivered.update(changes)
            write_json(notes, delivered, durably=True)

        parent = description.get("parent")
        if parent:
            known = (above or {}).get(parent)
            parent = known or existing_run(server, description["experiment"], parent).info.run_id
        # read the end first, so that all before it is delivered before it
        ended, owner = run.ended(), owner_of(run)
        held = {"owner": asdict(owner)} if owner and ended is None else {}
        tags = [RunTag(OWNER_TAG, json.dumps(held["owner"]))] if held else []
        if seen is None:
            is_new = not any(run.root.glob("checkpoints/*/manifest.json"))
            seen = _make_run(server, run, parent, tags, is_new)
            noted = {"noted": [ended]} if is_new else {}
            note(run_id=str(seen.info.run_id), id=description["id"], **held, **noted)
        run_id = str(delivered["run_id"])
        if parent and seen.data.tags.get(PARENT_TAG) != parent:  # the parent is a new one
            server.set_tag(run_id, PARENT_TAG, parent)
        if held and delivered.get("owner") != held["owner"]:
            server.log_batch(run_id, tags=tags)
            note(**held)
        for name, path in run.artifacts().items():
            known, digest = delivered.get("artifacts", {}), sha256(path)
            if known.get(name) != digest:
                server.log_artifact(run_id, str(path), name.rpartition("/")[0] or None)
                note(artifacts={**known, name: digest})
        if (set_since := run.tags()) != delivered.get("tags", {}):
            _log_tags(server, run_id, {mlflow_name(key): v for key, v in set_since.items()})
            note(tags=set_since)
        history = run.history()
        names = [checkpoint.folder.name for checkpoint in history]
        start = names.index(delivered["upto"]) + 1 if delivered.get("upto") in names else 0
        for checkpoint in history[start:]:
            if stop():
                return run_id
            points = parse_lines(checkpoint.segment())
            log_points(server, run_id, points)
            known = delivered.get("not_finite", {})
            odd = [point for point in reversed(points) if not math.isfinite(point.value)]
            if (first := {p.key: f"{p.value} at step {p.step}" for p in odd} | known) != known:
                text = "; ".join(f"{key} {how}" for key, how in first.items())
                _log_tags(server, run_id, {NOT_FINITE_TAG: text})
                note(not_finite=first)
            for picture in checkpoint.pictures():
                time_ms = points[-1].time_ms if points else int(1000 * picture.stat().st_mtime)
                _log_picture(server, run_id, checkpoint, picture, time_ms)
            note(upto=checkpoint.folder.name)
        left_out = sum(checkpoint.left_out for checkpoint in history)
        if left_out != delivered.get("left_out", 0):
            server.set_tag(run_id, "gliotrail.pictures_left_out", str(left_out))
            note(left_out=left_out)
        resumed = resume_tags(history)
        if resumed and resumed != delivered.get("resumed"):
            _log_tags(server, run_id, resumed)
            note(resumed=resumed)
        if (run.root / MODEL_FILE).is_file() and "model" not in delivered:
            experiment = experiment_id(server, description["experiment"])
            weights = run.root / MODEL_FILE
            threshold = description["params"].get("threshold", _THRESHOLD)
            note(model=log_model(server, experiment, run_id, weights, threshold))
        status = ended["status"] if ended else "RUNNING"
        news = ended != delivered.get("ended") or seen.info.status != status
        text = "" if delivered.get("noted") == [ended] else note_of_folder(run, page_of(seen))
        described = note_tags(seen, text) if text else []
        # only its own process may set a run to RUNNING
        if news and (ended or owner is None or is_alive(owner)):
            if status == "FAILED" and (run.root / TRACEBACK_FILE).is_file():
                server.log_artifact(run_id, str(run.root / TRACEBACK_FILE))
            _set_status(server, run_id, ended, described)
            note(ended=ended, noted=[ended])
        elif text:
            if described:
                server.log_batch(run_id, tags=described)
            note(noted=[ended])
        if REAPED_TAG in seen.data.tags:
            server.delete_tag(run_id, REAPED_TAG)
        return run_id


def _on_server(server: MlflowClient, run_id: str) -> Run | None:
    """The run on the server; None if it isn't there or was deleted."""
    try:
        run = server.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _log_tags(server: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    listed = [RunTag(key, value[:_LONGEST_TAG]) for key, value in tags.items()]
    for start in range(0, len(listed), 100):
        server.log_batch(run_id, tags=listed[start : start + 100])


def _make_run(
    server: MlflowClient, run: RunFolder, parent: str | None, more: Sequence[RunTag], is_new: bool
) -> Run:
    """Create a run with all that is known at its start, in few calls: sweeps create many runs.

    Args:
        more: tags to set once the run is known to be no twin.
        is_new: it has no checkpoint yet, and gets its description at once.
    """
    description = run.describe()
    number = experiment_id(server, description["experiment"], description["tags"])
    tags = {ID_TAG: description["id"]}
    tags |= {mlflow_name(key): value for key, value in description["tags"].items()}
    if parent:
        tags[PARENT_TAG] = parent
    found = make_once(
        lambda: the_run(server, number, description["id"]),
        lambda: server.create_run(
            number,
            start_time=description["started_ms"],
            run_name=description["name"],
            tags=tags,
        ),
    )
    run_id = str(found.info.run_id)
    flat = flatten(description["params"])
    params = [Param(mlflow_name(key), value) for key, value in flat.items()]
    described = note_tags(found, note_of_folder(run, page_of(found))) if is_new else []
    for start in range(0, len(params) or 1, 100):
        server.log_batch(
            run_id, params=params[start : start + 100], tags=() if start else [*more, *described]
        )
    datasets = [
        DatasetInput(
            Dataset(d["name"], d["digest"], d.get("source", "dvc"), json.dumps({"uri": d["path"]})),
            [InputTag("mlflow.data.context", d["context"])],
        )
        for d in description["datasets"]
    ]
    if datasets:
        server.log_inputs(run_id, datasets=datasets)
    code = description["tags"].get("gliotrail.code.files")
    if code and code_dir(code).is_dir():
        server.log_artifacts(run_id, str(code_dir(code)), "code")
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as flat ones for MLflow: `model.depth` -> `2`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)[:_LONGEST_PARAM]
    return flat


def log_points(server: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Log metrics with the times they already have: repeating it changes nothing."""
    metrics = [Metric(mlflow_name(p.key), p.value, p.time_ms, p.step) for p in points]
    for start in range(0, len(metrics), _BATCH):
        server.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def _log_picture(
    server: MlflowClient, run_id: str, checkpoint: Checkpoint, path: Path, time_ms: int
) -> None:
    """Log an image with a step, so that MLflow's slider moves through training.

    MLflow identifies images by file names, and `log_image` makes up a new one at each call. Here
    the same picture always has the same name, so that it is there once.
    """
    made_up = uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {checkpoint.folder.name} {path.name}")
    stem = f"{path.stem}+step+{checkpoint.step}+timestamp+{time_ms}+{made_up}"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / f"{stem}.png")
        with Image.open(path) as image:
            _small(image).save(Path(folder) / f"{stem}+compressed.webp")
        server.log_artifacts(run_id, folder, "images")
    server.set_tag(run_id, "mlflow.loggedImages", "True")


def _small(image: Image.Image) -> Image.Image:
    """The copy that MLflow shows beside its slider, at the top of a square.

    MLflow would make it square by itself, with the picture in the middle, out of view.
    """
    small = image.convert("RGB")
    small.thumbnail((_SMALL_PX, _SMALL_PX))
    square = Image.new("RGBA", (max(small.size), max(small.size)))
    square.paste(small)
    return square


def _set_status(
    server: MlflowClient,
    run_id: str,
    ended: Mapping[str, Any] | None,
    more: Sequence[RunTag],
) -> None:
    """Set the status, after the end's tags and figures and `more` tags."""
    if ended is None:
        server.log_batch(run_id, tags=[RunTag(STATUS_TAG, "RUNNING"), *more])
        server.update_run(run_id, status="RUNNING")
        return
    # tags first: a reaper that closes the run at this moment reads them afterwards
    says = {"gliotrail.ended": ended["reason"], STATUS_TAG: ended["status"]}
    tags = [*more, *(RunTag(*tag) for tag in says.items())]
    metrics = [
        Metric(mlflow_name(key), float(value), ended["time_ms"], 0)
        for key, value in ended["summary"].items()
        if "/" in key and value is not None
    ]
    server.log_batch(run_id, metrics=metrics, tags=tags)
    server.set_terminated(run_id, ended["status"], end_time=ended["time_ms"])
