"""Keras' HDF5 weights of the U-Net, of any depth and width, as this project's.

Three layouts. Old weights files have the attribute `layer_names` at their root, and each layer's
group has `weight_names`: both are lists in the model's order. Whole models have the same below
`model_weights`. Keras 3's `.weights.h5` has `layers/conv3d_2/vars/0`, where the number is the
place among the model's layers of that class, counted anew in every file; Keras itself reads them
back by it (keras/src/saving/saving_lib.py, the same from 2.15 to 3.15). The layers' own names,
numbered through a whole program run, are only an attribute there. Shapes don't give the order: at
each level two convolutions have the same.

A file may come from anybody: nothing outside it is opened, nothing in it is unpickled or run, and
shapes are compared before memory is taken.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gliotrail.dataset.brats import BRATS, channel_name
from gliotrail.dataset.task import Task
from gliotrail.errors import WeightsError
from gliotrail.params import Model
from gliotrail.segmentation.weights import Description, reordered

LARGEST_VALUES: Final = 2**29
"""A file with more weights (2 GiB of float32) is refused."""
_MOST_NAMES: Final = 1000
_IN_THE_FILE: Final = {h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED}


@dataclass(frozen=True)
class Mapped:
    """A convolution: its layer in Keras, its module in the network, its kernel there."""

    layer: str
    module: str
    kernel: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class KerasWeights:
    """Weights by the network's names, their description, and where each came from."""

    state: dict[str, Tensor]
    description: Description
    mapped: tuple[Mapped, ...]


@dataclass(frozen=True)
class _Convolution:
    """A layer's two datasets: kernel (k, k, k, in, out) and bias (out)."""

    layer: str
    kernel: h5py.Dataset
    bias: h5py.Dataset


def read_keras(
    path: Path,
    channels: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    standardize: Literal["foreground", "slice", "none"] = "slice",
    task: Task = BRATS,
) -> KerasWeights:
    """Read the network of a Keras file; depth and base width follow from the shapes.

    Args:
        path: a weights file, a whole model, or a `.weights.h5` of Keras 3.
        channels: names of its inputs, in its order; the task's if None.
        classes: names of its outputs, in its order; the task's if None.
        standardize: how its input was standardised. `slice` is nearest to the course's way.

    Raises:
        WeightsError: an unknown or missing channel or class; no such file, another layout, layers
            that are not this network's, NaN.
    """
    channels = [channel_name(name) for name in channels or task.channel_names]
    classes = list(classes or task.class_names)
    for what, names, known in (
        ("channels", channels, task.channel_names),
        ("classes", classes, task.class_names),
    ):
        if sorted(names) != sorted(known):
            wanted, got = ", ".join(known), ", ".join(names)
            raise WeightsError(what, where=path, wanted=wanted, got=got)
    with _opened(path) as file:
        found = list(_convolutions(file, path))
        description = Description(
            model=_model_of(found, path),
            standardize=standardize,
            task=reordered(task, channels, classes),
        )
        with torch.device("meta"):
            network = description.build()
        modules = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv3d)]
        for layer, (name, module) in zip(found, modules, strict=True):
            _check_shape(layer, name, module, path)
        state: dict[str, Tensor] = {}
        for layer, (name, _) in zip(found, modules, strict=True):
            kernel = _values(layer.kernel, layer.layer, path).permute(4, 3, 0, 1, 2)
            state[f"{name}.weight"] = kernel.contiguous()
            state[f"{name}.bias"] = _values(layer.bias, layer.layer, path)
    mapped = tuple(
        Mapped(layer.layer, name, tuple(module.weight.shape), module.weight.numel() + len(bias))
        for layer, (name, module) in zip(found, modules, strict=True)
        for bias in [state[f"{name}.bias"]]
    )
    return KerasWeights(state, description, mapped)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise WeightsError("no such file", where=path)
    if not h5py.is_hdf5(path):
        do = "in a .keras archive (zip) it is model.weights.h5"
        raise WeightsError("format", where=path, wanted="HDF5", got="something else", do=do)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise WeightsError("damaged HDF5 file", where=path, got=str(error)) from None


def _convolutions(file: h5py.File, path: Path) -> Iterator[_Convolution]:
    """All layers with weights, in the model's order."""
    if "layers" in file and not _has_names(file, "layer_names"):
        layers = _numbered_layers(_member(file, "layers", path), path)
    else:
        top = file if _has_names(file, "layer_names") else _member(file, "model_weights", path)
        layers = _listed_layers(top, path)
    for layer, tensors in layers:
        for tensor in tensors:
            _check_dataset(tensor, layer, path)
        shapes = [tensor.shape for tensor in tensors]
        # a model inside the model counts as one layer, with all its tensors
        for n in range(0, len(tensors), 2):
            if [len(shape) for shape in shapes[n : n + 2]] != [5, 1]:
                wanted = "a 3-D convolution's kernel and bias"
                raise WeightsError(layer, where=path, wanted=wanted, got=f"shapes {shapes[:4]}")
            yield _Convolution(layer, *tensors[n : n + 2])


def _listed_layers(top: h5py.Group, path: Path) -> Iterator[tuple[str, list[h5py.Dataset]]]:
    for layer in _names(top, "layer_names", path):
        group = _member(top, layer, path)
        names = _names(group, "weight_names", path)
        yield layer, [_member(group, name, path) for name in names]


def _numbered_layers(layers: h5py.Group, path: Path) -> Iterator[tuple[str, list[h5py.Dataset]]]:
    """Those with weights: `conv3d`, `conv3d_1`, `conv3d_2`, .. without a gap, else no order."""
    tensors = {}
    for layer in _keys(layers, path):
        variables = _member(layers, f"{layer}/vars", path)
        if len(variables):
            numbers = [str(n) for n in range(min(len(variables), _MOST_NAMES))]
            tensors[layer] = [_member(variables, number, path) for number in numbers]
    first = re.sub(r"_\d+$", "", min(tensors, default=""))
    order = [first, *(f"{first}_{n}" for n in range(1, len(tensors)))]
    if sorted(order) != sorted(tensors):
        wanted = "one class of layers, numbered without a gap"
        got = ", ".join(sorted(tensors)[:4]) or "none"
        do = "the file has no other order of layers; save the whole model as .h5"
        raise WeightsError("layers with weights", where=path, wanted=wanted, got=got, do=do)
    for layer in order:
        yield layer, tensors[layer]


def _keys(group: h5py.Group, path: Path) -> list[str]:
    if len(group) > _MOST_NAMES:
        raise WeightsError("layers", where=path, wanted=f"up to {_MOST_NAMES}", got=len(group))
    return list(group)


def _member(group: h5py.Group, name: str, path: Path) -> Any:
    """The member at `a/b/c`, which must lie in this very file: no link leads out of it."""
    for part in name.split("/"):
        key = part.encode()
        if not (isinstance(group, h5py.Group) and key and group.id.links.exists(key)):
            wanted = "layer_names, model_weights or layers" if group.name == "/" else repr(name)
            raise WeightsError("layout", where=path, wanted=wanted, got="none")
        if group.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise WeightsError("link", where=path, wanted="everything in one file", got=repr(name))
        group = group[part]
    return group


def _has_names(group: h5py.Group, key: str) -> bool:
    return key in group.attrs or f"{key}0" in group.attrs


def _names(group: h5py.Group, key: str, path: Path) -> list[str]:
    """A list of texts; Keras cuts long ones in pieces (`key0`, `key1`, ..)."""
    keys = [key]
    if key not in group.attrs:
        keys = [f"{key}{n}" for n in range(len(group.attrs)) if f"{key}{n}" in group.attrs]
    names: list[str] = []
    for piece in keys:
        stored = group.attrs.get_id(piece)
        empty = stored.shape == (0,)
        text = h5py.check_string_dtype(stored.dtype) is not None and len(stored.shape) == 1
        if not (empty or (text and len(names) + stored.shape[0] <= _MOST_NAMES)):
            wanted, got = f"up to {_MOST_NAMES} names", f"{stored.dtype} {stored.shape}"
            raise WeightsError(f"{group.name} {key}", where=path, wanted=wanted, got=got)
        if not empty:
            values = group.attrs[piece]
            names += [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return names


def _check_dataset(tensor: Any, layer: str, path: Path) -> None:
    """Refuse values outside this file, first of all: even a shape may be read from others."""
    if not isinstance(tensor, h5py.Dataset):
        raise WeightsError(layer, where=path, wanted="a dataset", got=type(tensor).__name__)
    creation = tensor.id.get_create_plist()
    if creation.get_layout() not in _IN_THE_FILE or creation.get_external_count():
        raise WeightsError(layer, where=path, wanted="values in this file", got="in another")
    if tensor.dtype.kind != "f" or tensor.shape is None:
        raise WeightsError(layer, where=path, wanted="real numbers", got=tensor.dtype)
    if tensor.id.get_storage_size() == 0:
        raise WeightsError(layer, where=path, wanted="values", got="none were ever written")


def _model_of(found: Sequence[_Convolution], path: Path) -> Model:
    """Depth and base width: a network of depth n has 4n - 1 convolutions."""
    depth, rest = divmod(len(found) + 1, 4)
    if rest or not found:
        wanted = "4 times the depth, less one"
        raise WeightsError("convolutions", where=path, wanted=wanted, got=len(found))
    base = int(found[0].kernel.shape[-1])
    values = sum(int(np.prod(c.kernel.shape, dtype=object)) for c in found)
    if values > LARGEST_VALUES:
        raise WeightsError("weights", where=path, wanted=f"up to {LARGEST_VALUES}", got=values)
    try:
        return Model(name="unet3d", depth=depth, base_filters=base)
    except ValidationError as error:
        problem = error.errors()[0]
        what = str(problem["loc"][0])
        raise WeightsError(what, where=path, got=f"{problem['input']}: {problem['msg']}") from None


def _check_shape(layer: _Convolution, name: str, module: nn.Conv3d, path: Path) -> None:
    out_channels, in_channels, *kernel = module.weight.shape
    wanted = (*kernel, in_channels, out_channels)
    for got, right in ((layer.kernel.shape, wanted), (layer.bias.shape, (out_channels,))):
        if got != right:
            what = f"{layer.layer}, as {name} of a U-Net"
            raise WeightsError(what, where=path, wanted=right, got=got)


def _values(tensor: h5py.Dataset, layer: str, path: Path) -> Tensor:
    with np.errstate(over="ignore"):
        values = torch.from_numpy(tensor[...].astype(np.float32))
    if not values.isfinite().all():
        raise WeightsError(layer, where=path, wanted="finite numbers", got="NaN or Inf")
    return values
