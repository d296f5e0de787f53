"""The interface of a network: ours, MONAI's or one of your own."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gliotrail.errors import ParamsError
from gliotrail.imaging.geometry import Vox3
from gliotrail.own_parts import own_part, tried

if TYPE_CHECKING:  # the benches' peers have no pydantic
    from gliotrail.params import Model


class Network(nn.Module):
    """Abstract. Image (B, channels, I, J, K) -> logits (B, classes, I, J, K).

    I, J, K are multiples of `unet.stride(depth)`. A network of your own (see `own_parts`) is a
    subclass that is made as `Class(model, channels, classes)`, the first being `params.Model`; it
    sets `first` and `head_name`, and `encoder` if that is to be frozen.

    first: the name of the weights whose inputs are the channels (`voxels_each` inputs a channel).
    head_name: the name of the layer that gives the outputs likewise; it has a bias.
    heads: what the outputs are, see `params.Model`.
    training_only: the prefixes of names of weights that only `supervised` uses.
    window_vox: None where an output depends on its surroundings only (see
        `unet.receptive_radius_vox`); with normalisation, the size that is predicted at once: that
        of the patches that the network was trained on.
    """

    first: tuple[str, ...]
    head_name: str
    heads: str = "classes"
    training_only: tuple[str, ...] = ()
    voxels_each: int = 1
    depth: int
    base_filters: int
    window_vox: Vox3 | None = None

    @abstractmethod
    def forward(self, image_BCIJK: Tensor) -> Tensor:
        """Logits of the same spatial size."""

    def supervised(self, image_BCIJK: Tensor) -> Sequence[Tensor]:
        """The logits for the loss, and those of coarser levels at the same size."""
        return [self(image_BCIJK)]

    @property
    def networks(self) -> Mapping[str, "Network"]:
        """Itself, or an ensemble's members, by the prefix of their weights' names."""
        return {"": self}

    @property
    def n_outputs(self) -> int:
        """How many classes it predicts."""
        return int(self.get_parameter(f"{self.head_name}.bias").numel()) // self.voxels_each

    @property
    def encoder(self) -> Sequence[nn.Module]:
        """The modules that `train.freeze: encoder` freezes.

        Raises:
            ParamsError: the network names none.
        """
        got = f"{type(self).__name__}, which names no encoder"
        raise ParamsError("train.freeze", wanted="none", got=got)


class Ensemble(Network):
    """Networks of one kind. `inference.forward` averages their probabilities."""

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members, first = nn.ModuleList(members), members[0]
        self.first = first.first
        self.head_name = f"members.0.{first.head_name}"
        self.heads, self.voxels_each = first.heads, first.voxels_each
        self.depth, self.base_filters = first.depth, first.base_filters
        self.window_vox = first.window_vox

    @property
    def networks(self) -> Mapping[str, Network]:
        """The members."""
        named = self.members.named_children()
        return {f"members.{n}.": member for n, member in named if isinstance(member, Network)}

    def forward(self, image_BCIJK: Tensor) -> Tensor:
        """Logits of the mean probability."""
        given = [member(image_BCIJK).sigmoid() for member in self.networks.values()]
        return torch.stack(given).mean(0).logit()


def own_network(model: "Model", channels: int, classes: int) -> Network:
    """A network of your own, with arbitrary weights.

    Raises:
        ParamsError: it isn't there, can't be made, or is no such network.
    """
    key = "train.model.name"
    made = own_part(model.name, key)
    if not (isinstance(made, type) and issubclass(made, Network)):
        wanted = f"a subclass of {Network.__module__}.Network"
        raise ParamsError(f"{key}: {model.name}", wanted=wanted, got=repr(made))
    wanted = "a network made as Class(model, channels, classes), with first and head_name"
    with tried(f"{key}: {model.name}", wanted):
        network = made(model, channels, classes)
        head = network.head_name
        for name in (*network.first, f"{head}.weight", f"{head}.bias"):
            network.get_parameter(name)
    network.depth, network.base_filters, network.heads = (
        model.depth, model.base_filters, model.heads,
    )  # fmt: skip
    return network
