"""A network's weights as safetensors, with what is needed to use them rightly.

The header says which network it is, the names of channels and classes, and how intensities were
standardised. Names are compared on load, never trusted by position: permuted channels or classes
are re-ordered, missing ones refused. No pickle is ever read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gliotrail.errors import WeightsError
from gliotrail.imaging.labels import CHANNELS, CLASSES
from gliotrail.params import Model, Section
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.unet import UNet3d

_KEY = "gliotrail-weights-1"
CUBE_MM = (1.0, 1.0, 1.0)
"""The spacing of the Decathlon's scans, of BraTS, and of synthetic tumours."""
_Side = Annotated[int, Field(ge=1, le=1024)]
_Length = Annotated[float, Field(ge=0.01, le=100)]
_LARGEST_HEADER_BYTES = 1_000_000  # of a much larger one, safetensors may end the process


class Description(Section):
    """What a weights file is of.

    window: the patches' size, where the network normalises.
    spacing_mm: of the scans that it was trained on, in RAS+.
    """

    model: Model
    window: tuple[_Side, _Side, _Side] | None = None
    standardize: Literal["brain", "slice", "none"]
    spacing_mm: tuple[_Length, _Length, _Length] = CUBE_MM
    channels: tuple[str, ...] = CHANNELS
    classes: tuple[str, ...] = CLASSES

    def build(self) -> Network:
        """The network, with arbitrary weights."""
        network = build(self.model, len(self.channels), len(self.classes))
        network.window_vox = self.window
        return network


def build(model: Model, in_channels: int = len(CHANNELS), classes: int = len(CLASSES)) -> Network:
    """The network that params describe, with arbitrary weights.

    Raises:
        ParamsError: one of MONAI's, which isn't installed.
    """
    if model.name == "unet3d":
        network = UNet3d(model.depth, model.base_filters, in_channels, classes)
        network.heads = model.heads
        return network
    from gliotrail.segmentation.monai_networks import Normalised

    return Normalised(model, in_channels, classes)


def to_bytes(state: Mapping[str, Tensor], description: Description) -> bytes:
    """A weights file's content. Equal weights are equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # one key only: safetensors writes several in an order that changes from run to run
    return save(tensors, metadata={_KEY: description.model_dump_json(exclude_none=True)})


def load(path: Path) -> tuple[Network, Description]:
    """The network a weights file holds.

    Raises:
        WeightsError: no such file, no safetensors, another format, shapes that don't fit, or NaN.
    """
    state, description = read(path)
    with torch.device("meta"):  # the header may lie: compare shapes before memory is taken
        model = build(description.model)
    model.window_vox = description.window
    fitting = _fitting(model, state, description, CHANNELS, CLASSES, path)
    model.to_empty(device="cpu").load_state_dict(fitting)
    return model, description


def read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """The tensors by name, and what they are of.

    Raises:
        WeightsError: no such file, no safetensors, or another format.
    """
    if not path.is_file():
        raise WeightsError("no such file", where=path)
    try:
        with path.open("rb") as start:
            n_bytes = int.from_bytes(start.read(8), "little")
        if n_bytes > _LARGEST_HEADER_BYTES:
            got = f"a header of {n_bytes} bytes"
            raise WeightsError("not a whole safetensors file", where=path, got=got)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if _KEY not in header:
                raise WeightsError("not Gliotrail's weights", where=path, wanted=f"metadata {_KEY}")
            description = Description.model_validate_json(header[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError("not a whole safetensors file", where=path, got=str(error)) from None
    except ValidationError as error:
        problem = error.errors()[0]
        what = ".".join(["description", *map(str, problem["loc"])])
        raise WeightsError(what, where=path, got=problem["msg"]) from None


def load_into(
    model: Network,
    state: Mapping[str, Tensor],
    description: Description,
    channels: Sequence[str],
    classes: Sequence[str],
    where: object = None,
) -> None:
    """Copy weights into a network that is fed `channels` and gives `classes`, by their names.

    Raises:
        WeightsError: a channel or class the weights don't know, shapes that don't fit, or NaN.
    """
    model.load_state_dict(_fitting(model, state, description, channels, classes, where))


def _fitting(
    model: Network,
    state: Mapping[str, Tensor],
    description: Description,
    channels: Sequence[str],
    classes: Sequence[str],
    where: object,
) -> dict[str, Tensor]:
    """The weights in the network's type and order."""
    takes = _order(description.channels, channels, "channels", where)
    gives = _order(description.classes, classes, "classes", where)
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        shapes = [tuple(of[name].shape) if name in of else "none" for of in (wanted, state)]
        if shapes[0] != shapes[1]:
            raise WeightsError(name, where=where, wanted=shapes[0], got=shapes[1])
    fitting = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise WeightsError(name, where=where, wanted="floating-point numbers", got=tensor.dtype)
        fitting[name] = tensor.to(wanted[name].dtype)
        if not fitting[name].isfinite().all():
            raise WeightsError(name, where=where, wanted="finite numbers", got="NaN or Inf")
    for name in model.first:
        fitting[name] = fitting[name][:, _each(takes, model.voxels_each)]
    for part in ("weight", "bias"):
        name = f"{model.head_name}.{part}"
        fitting[name] = fitting[name][_each(gives, model.voxels_each)]
    return fitting


def _each(order: Sequence[int], n: int) -> list[int]:
    """The same order of groups of n."""
    return [place * n + part for place in order for part in range(n)]


def _order(have: Sequence[str], want: Sequence[str], what: str, where: object) -> list[int]:
    """Where each wanted name is found."""
    if sorted(have) != sorted(want):
        raise WeightsError(what, where=where, wanted=", ".join(want), got=", ".join(have))
    return [list(have).index(name) for name in want]
