"""What the platform asks of a network, whichever it is."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from gliotrail.imaging.geometry import Vox3


class Network(nn.Module):
    """Abstract. Image (B, channels, I, J, K) -> logits (B, classes, I, J, K).

    I, J, K are multiples of `unet.stride(depth)`.

    first, head_name: the names of the weights that are fed the channels (each channel as
        `voxels_each` in a row), and of the layer that gives the outputs likewise (it has a bias).
    heads: what the outputs are, see `params.Model`.
    window_vox: None where an output depends on its surroundings only (see
        `unet.receptive_radius_vox`); with normalisation what is predicted at once: the size of the
        patches that it was trained on.
    """

    first: tuple[str, ...]
    head_name: str
    heads: str = "classes"
    voxels_each: int = 1
    depth: int
    base_filters: int
    window_vox: Vox3 | None = None

    @abstractmethod
    def forward(self, image_BCIJK: Tensor) -> Tensor:
        """Logits of the same spatial size."""

    @property
    def n_outputs(self) -> int:
        """How many classes it gives."""
        return int(self.get_parameter(f"{self.head_name}.bias").numel()) // self.voxels_each

    @property
    @abstractmethod
    def encoder(self) -> Sequence[nn.Module]:
        """What `train.freeze: encoder` keeps as it was."""
