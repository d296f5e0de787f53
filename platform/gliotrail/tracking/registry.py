"""Models in MLflow: logged with their run, registered, and the best one called `champion`.

A model is weights as safetensors and a pyfunc from code: nothing of it is ever unpickled. Each
step can be repeated: a model is known by the SHA-256 of its weights.
"""

import hashlib
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
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

import gliotrail
from gliotrail.errors import TrackingError
from gliotrail.imaging.labels import CHANNELS

MODEL: Final = "gliotrail-unet3d"
CHAMPION: Final = "champion"
_NEEDS: Final = ("mlflow", "nibabel", "numpy", "pydantic", "ruamel.yaml", "safetensors", "torch")
_SHA256: Final = "gliotrail.weights_sha256"


def log_model(client: MlflowClient, experiment_id: str, run_id: str, weights: Path) -> str:
    """Log a weights file as a pyfunc model of a run, once.

    Returns:
        MLflow's id of the logged model.
    """
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    for known in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if known.tags.get(_SHA256) == sha256 and str(known.status) == "READY":
            return str(known.model_id)
    made = client.create_logged_model(
        experiment_id, "model", run_id, tags={_SHA256: sha256}, model_type="unet3d"
    )
    with tempfile.TemporaryDirectory() as folder:
        save_pyfunc(weights, Path(folder) / "model")
        client.log_model_artifacts(made.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    return str(made.model_id)


def save_pyfunc(weights: Path, folder: Path) -> None:
    """A weights file as an MLflow pyfunc: image (4, I, J, K) in raw values -> labels (I, J, K)."""
    root = Path(gliotrail.__file__).parent
    image = TensorSpec(np.dtype("float32"), (len(CHANNELS), -1, -1, -1), name=None)
    labels = TensorSpec(np.dtype("uint8"), (-1, -1, -1), name=None)
    needs = [f"{name}=={metadata.version(name).split('+')[0]}" for name in _NEEDS]
    with tempfile.TemporaryDirectory() as place:
        code = Path(place) / "gliotrail"
        shutil.copytree(root, code, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        with warnings.catch_warnings():
            # an input example would be stored with each model, to check what our tests check
            warnings.filterwarnings("ignore", ".*input example was not provided")
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(root / "tracking" / "pyfunc_model.py"),
                artifacts={"weights": str(weights)},
                code_paths=[str(code)],
                signature=ModelSignature(inputs=Schema([image]), outputs=Schema([labels])),
                pip_requirements=needs,
            )


def register(
    client: MlflowClient, run_id: str, model_id: str, weights: Path, tags: Mapping[str, str]
) -> ModelVersion:
    """The model's version in the registry, made if it isn't there."""
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    try:
        client.create_registered_model(
            MODEL, description="3-D U-Net for brain tumours: FLAIR, T1w, T1gd, T2w -> labels 0 to 3"
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name = '{MODEL}'"):
        if known.tags.get(_SHA256) == sha256 and known.run_id == run_id:
            return known
    version = client.create_model_version(
        MODEL, f"models:/{model_id}", run_id, tags={_SHA256: sha256, **tags}, model_id=model_id
    )
    return version


def champion(client: MlflowClient) -> ModelVersion | None:
    """The version that carries the alias, if any does."""
    try:
        return client.get_model_version_by_alias(MODEL, CHAMPION)
    except (RestException, MlflowException):
        return None


def promote(
    client: MlflowClient,
    challenger: ModelVersion,
    score: float,
    judged_on: str,
    rescore: Callable[[ModelVersion], float],
) -> bool:
    """Make the challenger champion if its validation score is the better one.

    Args:
        judged_on: digest of the validation data and the measures' version. If the champion was
            judged on other data, it is scored again first.
        rescore: a version's score on the challenger's validation data.

    Returns:
        whether the challenger is the champion now.
    """
    for key, value in (("score", repr(score)), ("judged_on", judged_on)):
        client.set_model_version_tag(MODEL, challenger.version, f"gliotrail.{key}", value)
    holder = champion(client)
    if holder is not None and holder.version == challenger.version:
        return True
    if holder is not None:
        same = holder.tags.get("gliotrail.judged_on") == judged_on
        held = float(holder.tags["gliotrail.score"]) if same else rescore(holder)
        if not same:
            client.set_model_version_tag(MODEL, holder.version, "gliotrail.score", repr(held))
            client.set_model_version_tag(MODEL, holder.version, "gliotrail.judged_on", judged_on)
        if score <= held:
            return False
    client.set_registered_model_alias(MODEL, CHAMPION, challenger.version)
    return True


def download_weights(client: MlflowClient, version: ModelVersion, folder: Path) -> Path:
    """A version's weights file, in a folder; its SHA-256 is compared.

    Raises:
        TrackingError: the file is not the one that was registered.
    """
    place = mlflow.artifacts.download_artifacts(
        f"models:/{MODEL}/{version.version}", dst_path=str(folder), tracking_uri=client.tracking_uri
    )
    found = sorted(Path(place).rglob("*.safetensors"))
    got = hashlib.sha256(found[0].read_bytes()).hexdigest() if found else "no weights"
    wanted = version.tags.get(_SHA256)
    if got != wanted:
        raise TrackingError(f"{MODEL} version {version.version}: sha256", wanted=wanted, got=got)
    return found[0]
