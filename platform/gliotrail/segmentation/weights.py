"""A network's weights as safetensors, with all that is needed to use them.

The header says which network it is, the names of channels and classes, and how intensities were
standardised. Names are compared on load, never trusted by position: permuted channels or classes
are re-ordered, missing ones refused. No pickle is ever read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.errors import WeightsError
from gliotrail.imaging.prepared import Intensity
from gliotrail.own_parts import is_own
from gliotrail.param_types import Standardize
from gliotrail.params import Model, Section
from gliotrail.segmentation.network import Ensemble, Network, own_network
from gliotrail.segmentation.postprocess import Postprocess
from gliotrail.segmentation.unet import UNet3d

_KEY = "gliotrail-weights-1"
CUBE_MM = (1.0, 1.0, 1.0)
"""The spacing of the Decathlon's scans, of BraTS, and of synthetic tumours."""
_Side = Annotated[int, Field(ge=1, le=1024)]
_Length = Annotated[float, Field(ge=0.01, le=100)]
_LARGEST_HEADER_BYTES = 1_000_000  # a much larger one may make safetensors end the process


class Description(Section):
    """What a weights file says about its network.

    window: the patches' size, where the network normalises.
    spacing_mm: of the scans that it was trained on, in RAS+.
    task: the channels it is fed and the classes it gives, in their order.
    intensities: of the CT channels.
    postprocess: rules for its label maps, if any.
    members: how many networks of this kind it holds, see `ensemble`.
    trained_on: the cases that it saw, those of its first weights included, and the scans and shapes
        of synthetic ones; empty where that is not known.
    """

    model: Model
    window: tuple[_Side, _Side, _Side] | None = None
    standardize: Standardize
    spacing_mm: tuple[_Length, _Length, _Length] = CUBE_MM
    task: Task = BRATS
    intensities: dict[str, Intensity] = Field(default_factory=dict)
    postprocess: Postprocess | None = None
    members: Annotated[int, Field(ge=1, le=64)] = 1
    trained_on: tuple[str, ...] = ()

    @property
    def channels(self) -> tuple[str, ...]:
        """Names, in the order of the inputs."""
        return self.task.channel_names

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the outputs."""
        return self.task.class_names

    def build(self) -> Network:
        """The network, with arbitrary weights."""
        members = [build(self.model, self.task) for _ in range(self.members)]
        for network in members:
            network.window_vox = self.window
        return Ensemble(members) if self.members > 1 else members[0]


def build(model: Model, task: Task) -> Network:
    """The network that params describe for these channels and classes, with arbitrary weights.

    Raises:
        ParamsError: MONAI isn't installed; for a network of your own, as `own_network`.
    """
    in_channels, classes = len(task.channels), len(task.classes)
    if model.name == "unet3d":
        network = UNet3d(model.depth, model.base_filters, in_channels, classes)
        network.heads = model.heads
        return network
    if is_own(model.name):
        return own_network(model, in_channels, classes)
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
        model = description.build()
    if sorted(description.channels) == sorted(BRATS.channel_names) and sorted(
        description.classes
    ) == sorted(BRATS.class_names):
        task = reordered(description.task, BRATS.channel_names, BRATS.class_names)
    else:
        task = description.task
    fitting: dict[str, Tensor] = {}
    for start, network in model.networks.items():
        own = {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}
        fitted = _fitting(network, own, description, task, path)
        fitting |= {start + name: tensor for name, tensor in fitted.items()}
    description = description.model_copy(update={"task": task})
    model.to_empty(device="cpu").load_state_dict(fitting)
    return model, description


def read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """The tensors by name, and their description.

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
            description = Description.model_validate_json(_upgraded(header[_KEY], path))
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError("not a whole safetensors file", where=path, got=str(error)) from None
    except ValidationError as error:
        problem = error.errors()[0]
        what = ".".join(["description", *map(str, problem["loc"])])
        raise WeightsError(what, where=path, got=problem["msg"]) from None


def _upgraded(text: str, where: Path) -> str:
    """A description in today's form: an early one has only the names of brain tumours.

    Raises:
        WeightsError: other channels or classes.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return text  # the validation that follows reports what is wrong
    if not isinstance(values, dict) or "task" in values:
        return text
    names = {}
    for what, usual in (("channels", BRATS.channel_names), ("classes", BRATS.class_names)):
        names[what] = values.pop(what, list(usual))
        if not isinstance(names[what], list) or sorted(map(str, names[what])) != sorted(usual):
            got = ", ".join(map(str, names[what])) if isinstance(names[what], list) else names[what]
            raise WeightsError(what, where=where, wanted=", ".join(usual), got=got)
    values["task"] = reordered(BRATS, **names).model_dump(mode="json")
    return json.dumps(values)


def load_into(
    model: Network,
    state: Mapping[str, Tensor],
    description: Description,
    task: Task,
    where: object = None,
) -> list[str]:
    """Copy weights into a network for the task's channels and classes, by their names.

    Channels and classes that the weights don't know keep what the network has.

    Returns:
        what was not taken, in words; empty where all names agree.

    Raises:
        WeightsError: no channel in common, or one of another kind; shapes that don't fit, or NaN.
    """
    known = {channel.name: channel.kind for channel in description.task.channels}
    for channel in task.channels:
        kind = known.get(channel.name, channel.kind)
        if kind != channel.kind:
            what = f"kind of channel {channel.name}"
            raise WeightsError(what, where=where, wanted=channel.kind, got=kind)
    if not set(task.channel_names) & set(description.channels):
        wanted, got = ", ".join(task.channel_names), ", ".join(description.channels)
        raise WeightsError("channels", where=where, wanted=wanted, got=got,
                           do="take `train.init: scratch`")  # fmt: skip
    if description.members > 1:
        wanted, do = "the weights of one network", "take a weights file of one of its members"
        raise WeightsError("members", where=where, wanted=wanted, got=description.members, do=do)
    model.load_state_dict(_fitting(model, state, description, task, where))
    differences = []
    for what, have, want in (
        ("channels", description.channels, task.channel_names),
        ("classes", description.classes, task.class_names),
    ):
        if new := [name for name in want if name not in have]:
            differences.append(f"{what} drawn anew: {', '.join(new)}")
        if left := [name for name in have if name not in want]:
            differences.append(f"{what} left out: {', '.join(left)}")
    return differences


def _fitting(
    model: Network,
    state: Mapping[str, Tensor],
    description: Description,
    task: Task,
    where: object,
) -> dict[str, Tensor]:
    """The weights in the network's type and order; its own where the names are new."""
    wanted = model.state_dict()
    aside = {name: wanted.pop(name) for name in [*wanted] if name.startswith(model.training_only)}
    head = [f"{model.head_name}.{part}" for part in ("weight", "bias")]
    of_names = {
        **dict.fromkeys(model.first, (1, description.channels, task.channel_names)),
        **dict.fromkeys(head, (0, description.classes, task.class_names)),
    }
    for name in sorted(wanted.keys() | state.keys()):
        shapes = [list(of[name].shape) if name in of else "none" for of in (wanted, state)]
        if name in of_names and "none" not in shapes:
            axis, have, want = of_names[name]
            shapes[0][axis] = len(have) * model.voxels_each  # type: ignore[index]
        if shapes[0] != shapes[1]:
            shown = [s if isinstance(s, str) else tuple(s) for s in shapes]
            raise WeightsError(name, where=where, wanted=shown[0], got=shown[1])
    fitting = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise WeightsError(name, where=where, wanted="floating-point numbers", got=tensor.dtype)
        fitting[name] = tensor.to(wanted[name].dtype)
        if not fitting[name].isfinite().all():
            raise WeightsError(name, where=where, wanted="finite numbers", got="NaN or Inf")
    for name, (axis, have, want) in of_names.items():
        if tuple(have) != tuple(want):
            n = model.voxels_each  # so many rows of each channel or class
            rows, own = fitting[name].split(n, axis), wanted[name].split(n, axis)
            chosen = [
                rows[have.index(one)] if one in have else own[place]
                for place, one in enumerate(want)
            ]
            fitting[name] = torch.cat(chosen, axis)
    return fitting | aside


def reordered(task: Task, channels: Sequence[str], classes: Sequence[str]) -> Task:
    """The task with its channels and classes in another order.

    Raises:
        ValueError: other names.
    """
    if sorted(channels) != sorted(task.channel_names) or sorted(classes) != sorted(
        task.class_names
    ):
        known = ", ".join((*task.channel_names, *task.class_names))
        raise ValueError(f"channels and classes other than {known}")
    of_channel = {channel.name: channel for channel in task.channels}
    of_class = {one.name: one for one in task.classes}
    new = {old: list(classes).index(name) + 1 for old, name in enumerate(task.class_names, 1)}
    regions = tuple(
        region.model_copy(
            update={
                "labels": tuple(sorted(new[label] for label in region.labels)),
                "written": new[region.written],
            }
        )
        for region in task.regions
    )
    return task.model_copy(
        update={
            "channels": tuple(of_channel[name] for name in channels),
            "classes": tuple(of_class[name] for name in classes),
            "regions": regions,
        }
    )
