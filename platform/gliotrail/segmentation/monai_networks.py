"""Networks with normalisation, by MONAI: an optional extra, `pip install 'gliotrail[monai]'`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gliotrail.errors import ParamsError
from gliotrail.params import Model
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.unet import check_size


class Normalised(Network):
    """Image (B, in_channels, I, J, K) -> logits (B, out_channels, I, J, K), base * 2^d filters.

    `dynunet` is nnU-Net's network (instance normalisation, arXiv:1904.08128), `segresnet`
    Myronenko's (group normalisation, arXiv:1810.11654) without its autoencoder.
    `deep_supervision`, `residual` and `space_to_depth` are described in `params.Model`.

    Raises:
        ParamsError: MONAI isn't installed.
    """

    def __init__(
        self,
        model: Model,
        in_channels: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        try:
            from monai.networks.nets.dynunet import DynUNet
            from monai.networks.nets.segresnet import SegResNet
        except ImportError:
            do = "`pip install 'gliotrail[monai]'`"
            raise ParamsError(
                f"model.name: {model.name}", wanted="MONAI", got="none", do=do
            ) from None
        depth, base_filters = model.depth, model.base_filters
        self.depth, self.base_filters, self.heads = depth, base_filters, model.heads
        self.cube_vox = model.space_to_depth
        self.voxels_each = self.cube_vox**3
        in_channels, out_channels = in_channels * self.voxels_each, out_channels * self.voxels_each
        self.net: nn.Module
        self._down: tuple[str, ...]
        if model.name == "dynunet":
            convolutions = ("conv1", "conv3") if model.residual else ("conv1",)
            self.first = tuple(f"net.input_block.{name}.conv.weight" for name in convolutions)
            self.head_name = "net.output_block.conv.conv"
            self._down = ("input_block", "downsamples", "bottleneck")
            halving = [2] * (depth - 1)
            self.net = DynUNet(
                3, in_channels, out_channels, kernel_size=[3] * depth, strides=[1, *halving],
                upsample_kernel_size=halving, filters=[base_filters * 2**n for n in range(depth)],
                res_block=model.residual, deep_supervision=model.deep_supervision,
                deep_supr_num=depth - 2,
            )  # fmt: skip
            if model.deep_supervision:
                self.training_only = ("net.deep_supervision_heads.",)
            # MONAI registers each block here again, so that its weights would be stored twice
            skips = self.net.skip_layers
            del self.net.skip_layers
            object.__setattr__(self.net, "skip_layers", skips)
        else:
            self.first, self.head_name = ("net.convInit.conv.weight",), "net.conv_final.2.conv"
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
        return self.supervised(image_BCIJK)[0]

    def supervised(self, image_BCIJK: Tensor) -> list[Tensor]:
        """Logits; while training with deep supervision those of coarser levels, too."""
        n, image = self.cube_vox, image_BCIJK
        check_size(tuple(image.shape[2:]), self.depth, n)
        if n > 1:
            cubes = image.unflatten(2, (-1, n)).unflatten(4, (-1, n)).unflatten(6, (-1, n))
            image = cubes.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
            image = image.contiguous(memory_format=torch.channels_last_3d)
        logits = self.net(image)
        levels = logits.unbind(1) if logits.ndim > image.ndim else [logits]  # as MONAI stacks them
        return [_from_cubes(level, n) for level in levels]

    @property
    def encoder(self) -> Sequence[nn.Module]:
        """The way down."""
        return [self.net.get_submodule(name) for name in self._down]


def _from_cubes(logits: Tensor, n: int) -> Tensor:
    if n == 1:
        return logits
    cubes: Tensor = logits.unflatten(1, (-1, n, n, n)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return cubes.flatten(6, 7).flatten(4, 5).flatten(2, 3)
