"""Networks with normalisation, by MONAI: an optional extra, `pip install 'gliotrail[monai]'`."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from gliotrail.errors import ParamsError
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.unet import check_size


class Normalised(Network):
    """Image (B, in_channels, I, J, K) -> logits (B, out_channels, I, J, K), base * 2^d filters.

    `dynunet` is nnU-Net's network (instance normalisation, arXiv:1904.08128) without deep
    supervision, `segresnet` Myronenko's (group normalisation, arXiv:1810.11654) without its
    autoencoder.

    Raises:
        ParamsError: MONAI isn't installed.
    """

    def __init__(
        self,
        name: Literal["dynunet", "segresnet"],
        depth: int,
        base_filters: int,
        in_channels: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        try:
            from monai.networks.nets.dynunet import DynUNet
            from monai.networks.nets.segresnet import SegResNet
        except ImportError:
            do = "`pip install 'gliotrail[monai]'`"
            raise ParamsError(f"model.name: {name}", wanted="MONAI", got="none", do=do) from None
        self.depth, self.base_filters = depth, base_filters
        self.net: nn.Module
        self._down: tuple[str, ...]
        if name == "dynunet":
            self.first = "net.input_block.conv1.conv.weight"
            self.head_name = "net.output_block.conv.conv"
            self._down = ("input_block", "downsamples", "bottleneck")
            halving = [2] * (depth - 1)
            self.net = DynUNet(
                3, in_channels, out_channels, kernel_size=[3] * depth, strides=[1, *halving],
                upsample_kernel_size=halving, filters=[base_filters * 2**n for n in range(depth)],
            )  # fmt: skip
            # MONAI registers each block here again, so that its weights would be stored twice
            skips = self.net.skip_layers
            del self.net.skip_layers
            object.__setattr__(self.net, "skip_layers", skips)
        else:
            self.first, self.head_name = "net.convInit.conv.weight", "net.conv_final.2.conv"
            self._down = ("convInit", "down_layers")
            self.net = SegResNet(
                init_filters=base_filters, in_channels=in_channels, out_channels=out_channels,
                blocks_down=(1,) * depth, blocks_up=(1,) * (depth - 1),
            )  # fmt: skip

    def forward(self, image_BCIJK: Tensor) -> Tensor:
        """Logits of the same spatial size.

        Raises:
            ParamsError: a side that is not a multiple of the stride.
        """
        check_size(tuple(image_BCIJK.shape[2:]), self.depth)
        return self.net(image_BCIJK)  # type: ignore[no-any-return]

    @property
    def encoder(self) -> Sequence[nn.Module]:
        """The way down."""
        return [self.net.get_submodule(name) for name in self._down]
