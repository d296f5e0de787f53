"""A training's first weights: `train.init`."""

import hashlib
import tempfile
from pathlib import Path
from typing import Final

from gliotrail.errors import ParamsError
from gliotrail.files import locked, replacing
from gliotrail.paths import state_dir

PRETRAINED: Final = Path("results/weights/brats-unet3d.safetensors")
_KERAS: Final = {".h5", ".hdf5", ".keras"}


def initial_weights(init: str) -> Path | None:
    """The weights file that `train.init` names; None for `scratch`.

    Keras files are converted, and weights of registered models fetched, into the state folder under
    their own hash: a name that means another model later changes nothing here.

    Raises:
        ParamsError: no such file.
        WeightsError, TrackingError: as `read_keras` and `fetch_weights`.
    """
    if init == "scratch":
        return None
    path = PRETRAINED if init == "pretrained" else Path(init)
    if ":/" in init:
        # MLflow takes seconds to import
        from gliotrail.tracking.registry import fetch_weights

        with tempfile.TemporaryDirectory() as folder:
            return _keep(fetch_weights(init, Path(folder)).read_bytes())
    if not path.is_file():
        wanted = "pretrained, scratch, a file, or models:/NAME@ALIAS"
        raise ParamsError("train.init: no such file", where=path, wanted=wanted, got=repr(init))
    if path.suffix in _KERAS:
        from gliotrail.segmentation.keras import read_keras
        from gliotrail.segmentation.weights import to_bytes

        read = read_keras(path)
        return _keep(to_bytes(read.state, read.description))
    return path


def _keep(content: bytes) -> Path:
    path = state_dir() / "init" / f"{hashlib.sha256(content).hexdigest()}.safetensors"
    # another may start at the same instant
    with locked(state_dir() / "init.lock"), replacing(path) as partial:
        partial.write_bytes(content)
    return path
