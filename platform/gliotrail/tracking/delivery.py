"""From a run's folder to MLflow: everything exactly once, however often delivery is tried.

The folder is the truth (see `journal`); MLflow is told of what is final in it. Each call here
either is the same when made again (a metric is known by its time as well, a file by its name), or
looks first. What was told is noted after it was, so a delivery that is broken off anywhere only
makes calls again.
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
"""Of that process; of its runs, the first has it."""
REAPED_TAG: Final = "gliotrail.reaped"
"""Why another process closed it."""
STOP_TAG: Final = "gliotrail.stop"
"""What asks it to stop, from another machine; its process takes it away."""
NOT_FINITE_TAG: Final = "gliotrail.not_finite"
"""Of each metric that had such numbers, the first; MLflow keeps infinity as the largest number."""
PARENT_TAG: Final = "mlflow.parentRunId"
"""`false` where a run went on in another way than it began, so that its bits may differ."""
_BATCH: Final = 1000
_THRESHOLD: Final = 0.5  # of runs of versions that told none
_LONGEST_TAG: Final = 5000
_LONGEST_PARAM: Final = 6000
_SMALL_PX: Final = 1280
"""Legible where MLflow shows an image in full screen, too."""


def deliver(
    run: RunFolder,
    server: MlflowClient,
    stop: Callable[[], bool] = lambda: False,
    above: Mapping[str, str] | None = None,
) -> str:
    """Tell MLflow all that is final in a run's folder and was not told before.

    Args:
        stop: asked before each checkpoint: whether to leave the rest for another time.
        above: MLflow's ids of runs by our own: the run above this one is looked up if not there.

    Returns:
        MLflow's id of the run.

    Raises:
        MlflowException: the server refuses or can't be reached; try again later.
        TrackingError: the folder is damaged, or the run above this one is not in MLflow.
    """
    with locked(run.root / "delivery.lock"):
        notes, told, description = notes_path(run), read_notes(run), run.describe()
        same = "run_id" in told and told.get("id", description["id"]) == description["id"]
        seen = _on_server(server, told["run_id"]) if same else None
        if seen is None:
            told = {}  # none yet; or a new database at the same address, or the run was deleted

        def note(**changes: Any) -> None:
            told.update(changes)
            write_json(notes, told, durably=True)

        parent = description.get("parent")
        if parent:
            known = (above or {}).get(parent)
            parent = known or existing_run(server, description["experiment"], parent).info.run_id
        # the end is read first: what came before it is told before it
        ended, owner = run.ended(), owner_of(run)
        held = {"owner": asdict(owner)} if owner and ended is None else {}
        tags = [RunTag(OWNER_TAG, json.dumps(held["owner"]))] if held else []
        if seen is None:
            is_new = not any(run.root.glob("checkpoints/*/manifest.json"))
            seen = _make_run(server, run, parent, tags, is_new)
            noted = {"noted": [ended]} if is_new else {}
            note(run_id=str(seen.info.run_id), id=description["id"], **held, **noted)
        run_id = str(told["run_id"])
        if parent and seen.data.tags.get(PARENT_TAG) != parent:  # it was deleted, and made again
            server.set_tag(run_id, PARENT_TAG, parent)
        if held and told.get("owner") != held["owner"]:
            server.log_batch(run_id, tags=tags)
            note(**held)
        for name, path in run.artifacts().items():
            known, digest = told.get("artifacts", {}), sha256(path)
            if known.get(name) != digest:
                server.log_artifact(run_id, str(path), name.rpartition("/")[0] or None)
                note(artifacts={**known, name: digest})
        if (set_since := run.tags()) != told.get("tags", {}):
            _log_tags(server, run_id, {mlflow_name(key): v for key, v in set_since.items()})
            note(tags=set_since)
        history = run.history()
        names = [checkpoint.folder.name for checkpoint in history]
        start = names.index(told["upto"]) + 1 if told.get("upto") in names else 0
        for checkpoint in history[start:]:
            if stop():
                return run_id
            points = parse_lines(checkpoint.segment())
            log_points(server, run_id, points)
            known = told.get("not_finite", {})
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
        if left_out != told.get("left_out", 0):
            server.set_tag(run_id, "gliotrail.pictures_left_out", str(left_out))
            note(left_out=left_out)
        resumed = resume_tags(history)
        if resumed and resumed != told.get("resumed"):
            _log_tags(server, run_id, resumed)
            note(resumed=resumed)
        if (run.root / MODEL_FILE).is_file() and "model" not in told:
            experiment = experiment_id(server, description["experiment"])
            weights = run.root / MODEL_FILE
            threshold = description["params"].get("threshold", _THRESHOLD)
            note(model=log_model(server, experiment, run_id, weights, threshold))
        status = ended["status"] if ended else "RUNNING"
        news = ended != told.get("ended") or seen.info.status != status
        text = "" if told.get("noted") == [ended] else note_of_folder(run, page_of(seen))
        described = note_tags(seen, text) if text else []
        # that it runs only its own process says
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
    """What the server knows of a run; None where it is not there or was deleted."""
    try:
        run = server.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _log_tags(server: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    told = [RunTag(key, value[:_LONGEST_TAG]) for key, value in tags.items()]
    for start in range(0, len(told), 100):
        server.log_batch(run_id, tags=told[start : start + 100])


def _make_run(
    server: MlflowClient, run: RunFolder, parent: str | None, more: Sequence[RunTag], is_new: bool
) -> Run:
    """With all that is known of it at its beginning, in few calls: of many runs they are the most.

    Args:
        more: tags that may come only once it is known to be the one that counts.
        is_new: it has no checkpoint yet, and is described at once.
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
    """Nested params as `model.depth` -> `2`, as MLflow wants them."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)[:_LONGEST_PARAM]
    return flat


def log_points(server: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Log metrics with the times they already have: again is the same as once."""
    metrics = [Metric(mlflow_name(p.key), p.value, p.time_ms, p.step) for p in points]
    for start in range(0, len(metrics), _BATCH):
        server.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def _log_picture(
    server: MlflowClient, run_id: str, checkpoint: Checkpoint, path: Path, time_ms: int
) -> None:
    """As an image with a step, so that MLflow's slider moves through training.

    MLflow knows such images by their file names, and `log_image` makes up a new one at each call:
    this gives the same picture the same name, so that it is there once.
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

    MLflow makes a square of it in any case, with the picture in its middle, where it is not seen.
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
    """And the end's tags and figures, with more tags."""
    if ended is None:
        server.log_batch(run_id, tags=[RunTag(STATUS_TAG, "RUNNING"), *more])
        server.update_run(run_id, status="RUNNING")
        return
    # the tags come first: a reaper that closes the run at this moment looks at them afterwards
    told = {"gliotrail.ended": ended["reason"], STATUS_TAG: ended["status"]}
    tags = [*more, *(RunTag(*tag) for tag in told.items())]
    metrics = [
        Metric(mlflow_name(key), float(value), ended["time_ms"], 0)
        for key, value in ended["summary"].items()
        if "/" in key and value is not None
    ]
    server.log_batch(run_id, metrics=metrics, tags=tags)
    server.set_terminated(run_id, ended["status"], end_time=ended["time_ms"])
