"""Models in MLflow: logged with their run, registered, and the best one called `champion`.

A model is weights as safetensors and a pyfunc from code: nothing is ever unpickled. Each step can
be repeated: the SHA-256 of its weights identifies a model.
"""

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import gliotrail
from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task, as_name
from gliotrail.errors import TrackingError
from gliotrail.files import sha256
from gliotrail.own_parts import OWN, own_files, own_folder
from gliotrail.runs.addresses import shown, tracking_uri
from gliotrail.tracking.client import client, one_line
from gliotrail.tracking.once import SHA256_TAG, make_once, the_model, the_version

MODEL: Final = "gliotrail-unet3d"
"""The brain tumour models' name; each other task has its own, see `model_name`."""
CHAMPION: Final = "champion"
PROMOTED: Final = "promoted"
"""The alias of the version that a person made champion by name; `gliotrail segment` takes it."""
TRAINED_ON: Final = "gliotrail.trained_on"
"""A version's tag: the training cases, as named at registration."""
Rescored = tuple[float, float, str]
"""The challenger's score, the holder's, and the digest of the data that both were judged on."""
_NEEDS: Final = (
    "mlflow", "nibabel", "numpy", "pydantic", "rich", "ruamel.yaml", "safetensors", "scipy",
    "torch",
)  # fmt: skip
NO_MODEL_NEEDS: Final = ("cli", "cluster", "report", "runs", "search", "tracking", "training")
"""The rooms above `segmentation`, left out: each file of a model's code is stored with it."""
_SCORE, _JUDGED_ON = "gliotrail.score", "gliotrail.judged_on"
_CHALLENGES: Final = "gliotrail.challenges"
"""A version's tag while it is compared with the champion."""
_ABSENT: Final = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
_URI: Final = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")


def model_name(task: Task) -> str:
    """The registered name of models of these channels and classes; only they are compared."""
    if set(task.channel_names) == set(BRATS.channel_names) and (
        set(task.class_names) == set(BRATS.class_names)
    ):
        return MODEL
    name = as_name(task.name) or "-".join((*task.channel_names, *task.class_names))
    return f"gliotrail-{name.lower()}"[:100]


def log_model(
    server: MlflowClient, experiment_id: str, run_id: str, weights: Path, threshold: float
) -> str:
    """Log a weights file as a pyfunc model of a run, once.

    Returns:
        MLflow's id of the logged model.
    """
    digest = sha256(weights)
    model = make_once(
        lambda: the_model(server, experiment_id, run_id, digest),
        lambda: server.create_logged_model(
            experiment_id, "model", run_id, tags={SHA256_TAG: digest}, model_type="unet3d"
        ),
    )
    model_id = str(model.model_id)
    if str(model.status) == "READY":
        return model_id
    with tempfile.TemporaryDirectory() as folder:
        save_pyfunc(weights, Path(folder) / "model", threshold)
        server.log_model_artifacts(model_id, str(Path(folder) / "model"))
    outputs = server.get_run(run_id).outputs
    if model_id not in {known.model_id for known in (outputs.model_outputs if outputs else ())}:
        server.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    server.finalize_logged_model(model_id, "READY")  # last: an interrupted logging is repeated
    return model_id


def save_pyfunc(weights: Path, folder: Path, threshold: float) -> None:
    """A weights file as an MLflow pyfunc: see `pyfunc_model.Segmenter`."""
    root = Path(gliotrail.__file__).parent
    from gliotrail.segmentation.weights import read  # torch takes seconds to import

    description = read(weights)[1]
    network, channels = description.model.name, description.channels
    expected = (
        f"raw values of {', '.join(channels)}: an array ({len(channels)}, I, J, K) in RAS+ at the "
        "training data's spacing, or a file's path"
    )
    classes = ("background", *description.classes)
    labels_told = ", ".join(f"{n} {name}" for n, name in enumerate(classes))
    # a signature of the input can't say "an array or a path"; the model checks what it gets
    signature = ModelSignature(
        outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1), name=labels_told)]),
        params=ParamSchema([ParamSpec("channels", DataType.string, list(channels), (-1,))]),
    )
    more = () if network == "unet3d" else ("monai",)
    needs = [f"{name}=={metadata.version(name).split('+')[0]}" for name in (*_NEEDS, *more)]
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        code = Path(place) / "gliotrail"
        shutil.copytree(root, code, ignore=shutil.ignore_patterns("__pycache__", *NO_MODEL_NEEDS))
        parts = own_files([network])
        for path in parts:
            to = code.with_name(OWN) / path.relative_to(own_folder())
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
        # an input example would be stored with each model; our tests check the signature
        warnings.filterwarnings("ignore", ".*input example was not provided")
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(root / "tracking" / "pyfunc_model.py"),
            model_config={"threshold": threshold},
            artifacts={"weights": str(weights)},
            code_paths=[str(code), *([str(code.with_name(OWN))] if parts else [])],
            signature=signature,
            metadata={"input": expected, "labels": labels_told},
            pip_requirements=needs,
        )


def register(
    server: MlflowClient, run_id: str, model_id: str, weights: Path, tags: Mapping[str, str]
) -> ModelVersion:
    """The model's version in the registry, made if it isn't there."""
    from gliotrail.segmentation.weights import read  # torch takes seconds to import

    digest, task = sha256(weights), read(weights)[1].task
    name = model_name(task)
    try:
        channels, classes = ", ".join(task.channel_names), ", ".join(task.class_names)
        server.create_registered_model(name, description=f"{channels} -> {classes}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return make_once(
        lambda: the_version(server, name, run_id, digest),
        lambda: server.create_model_version(
            name,
            f"models:/{model_id}",
            run_id,
            tags={SHA256_TAG: digest, **tags},
            model_id=model_id,
        ),
    )


def validation_score(version: ModelVersion) -> float | None:
    """A version's mean Dice on validation, which decides its promotion."""
    return float(version.tags[_SCORE]) if _SCORE in version.tags else None


def champion(server: MlflowClient, name: str = MODEL) -> ModelVersion | None:
    """The version of a registered model that carries the alias, if any does."""
    try:
        return server.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        # any other error must not look like "no champion"
        if error.error_code in _ABSENT:
            return None
        raise


def promote(
    server: MlflowClient,
    challenger: ModelVersion,
    score: float,
    judged_on: str,
    rescore: Callable[[ModelVersion], Rescored | None],
    is_short: bool = False,
) -> bool | None:
    """Make the challenger champion if its validation score is the better one.

    MLflow can't compare and set an alias in one step. So the process that set it looks once more
    whether another host challenged the same champion meanwhile with a better score; that version
    then gets the alias. A champion that a person chose stays until a challenger beats it.

    Args:
        judged_on: digest of the validation data and the measures' version. If the champion was
            judged on other data, both are scored again first.
        rescore: scores both on the challenger's validation data that the holder wasn't trained on;
            None if it was trained on all of them.
        is_short: the challenger saw fewer voxels than planned: only a person makes it champion.

    Returns:
        whether the challenger is the champion now; None if they can't be compared: the champion
        stays.
    """

    def note(version: ModelVersion, of: float, on: str) -> None:
        server.set_model_version_tag(version.name, version.version, _SCORE, repr(float(of)))
        server.set_model_version_tag(version.name, version.version, _JUDGED_ON, on)

    number, name = str(challenger.version), challenger.name
    if is_short:
        note(challenger, score, judged_on)
        holder = champion(server, name)
        return holder is not None and str(holder.version) == number
    before = _scores(server, name, judged_on, settled=True)
    server.set_model_version_tag(name, number, _CHALLENGES, "true")
    note(challenger, score, judged_on)
    holder = champion(server, name)
    wins = holder is None or str(holder.version) == number
    if holder is not None and not wins:
        if holder.tags.get(_JUDGED_ON) == judged_on:
            ours, held = score, float(holder.tags[_SCORE])
        else:
            found = rescore(holder)
            if found is None:
                server.delete_model_version_tag(name, number, _CHALLENGES)
                return None
            ours, held, on = found
            note(holder, held, on)
        wins = ours > held
    if wins:
        server.set_registered_model_alias(name, CHAMPION, number)
        scores = _scores(server, name, judged_on)
        now = {version: of for version, of in scores.items() if of > score}
        if rivals := now.keys() - before:
            wins = False
            server.set_registered_model_alias(name, CHAMPION, max(rivals, key=now.__getitem__))
    server.delete_model_version_tag(name, number, _CHALLENGES)
    return wins


def _scores(
    server: MlflowClient, name: str, judged_on: str, settled: bool = False
) -> dict[str, float]:
    """Scores of versions judged on the same data; `settled`: only those not challenging now."""
    return {
        str(version.version): float(version.tags[_SCORE])  # a database says 1, a server "1"
        for version in server.search_model_versions(f"name = '{name}'")
        if version.tags.get(_JUDGED_ON) == judged_on
        and not (settled and _CHALLENGES in version.tags)
    }


def is_promoted() -> bool:
    """Whether a person promoted a version by name.

    Raises:
        TrackingError: MLflow can't be reached.
    """
    with one_line():
        try:
            client().get_model_version_by_alias(MODEL, PROMOTED)
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return False
            raise
    return True


def download_weights(server: MlflowClient, version: ModelVersion, folder: Path) -> Path:
    """A version's weights file, in a folder; its SHA-256 is compared.

    Raises:
        TrackingError: the file is not the one that was registered.
    """
    uri = f"models:/{version.name}/{version.version}"
    return _download(server, uri, version.tags.get(SHA256_TAG), folder)


def download_weights_of_run(server: MlflowClient, run: Run, folder: Path) -> Path:
    """The weights file that a run ended with, registered or not; its SHA-256 is compared.

    Raises:
        TrackingError: the run has no model, or the file is not the one that was logged.
    """
    where = f"source_run_id = '{run.info.run_id}'"
    for model in server.search_logged_models([run.info.experiment_id], where):
        if SHA256_TAG in model.tags and str(model.status) == "READY":
            return _download(server, f"models:/{model.model_id}", model.tags[SHA256_TAG], folder)
    got = f"it is {run.info.status}"
    raise TrackingError("no model", where=run.info.run_id, wanted="a training's end", got=got)


def _download(server: MlflowClient, uri: str, wanted: str | None, folder: Path) -> Path:
    place = mlflow.artifacts.download_artifacts(
        uri, dst_path=str(folder), tracking_uri=server.tracking_uri
    )
    found = sorted(Path(place).rglob("*.safetensors"))
    got = sha256(found[0]) if found else "no weights"
    if got != wanted:
        raise TrackingError("sha256", where=uri, wanted=wanted, got=got)
    return found[0]


def fetch_weights(uri: str, folder: Path) -> Path:
    """The weights file of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in a folder.

    Raises:
        TrackingError: as `find_version`; or the file is not the one that was registered.
    """
    with one_line():
        server = client()
        return download_weights(server, find_version(server, uri), folder)


def threshold_of(uri: str, default: float) -> float:
    """The threshold on the probability that a version's run was evaluated with.

    Raises:
        TrackingError: as `find_version`.
    """
    with one_line():
        server = client()
        run_id = find_version(server, uri).run_id
        params = server.get_run(run_id).data.params if run_id else {}
    return float(params.get("threshold", default))


def find_version(server: MlflowClient, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means.

    Raises:
        TrackingError: another URI, or no such model.
        MlflowException: a server that can't be reached.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        wanted = "models:/NAME@ALIAS or models:/NAME/VERSION"
        raise TrackingError("model URI", wanted=wanted, got=uri)
    name, alias, number = match.groups()
    try:
        if alias:
            return server.get_model_version_by_alias(name, alias)
        return server.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        do = "`gliotrail models` lists the models, `dvc repro` trains one"
        raise TrackingError(f"{uri}: no such model", where=shown(tracking_uri()), do=do) from None
