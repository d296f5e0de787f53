"""The 3-D U-Net. Exactly 833,507 parameters at depth 2 and 32 base filters.

Tensors are (B, C, I, J, K): batch, channel, left-right, posterior-anterior, inferior-superior.
Level d has base * 2^d filters, then 2 * base * 2^d, going down; going up, two convolutions of the
skip's width. No normalisation; 3x3x3 'same' convolutions with ReLU; max-pooling by 2; nearest
upsampling by 2; concatenation in the order [upsampled, skip]; a last 1x1x1 convolution to logits.
After Çiçek et al., MICCAI 2016 (arXiv:1606.06650), as the course on medical diagnosis builds it.
"""

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gliotrail.errors import ParamsError
from gliotrail.segmentation.network import Network

# A 3-wide kernel w over a tensor upsampled by 2 is a 4-wide transposed kernel over the tensor
# itself, its four taps being [w2, w1 + w2, w0 + w1, w0].
_TAPS: Final = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))

UpConvolution = Literal["split", "plain"]


class UNet3d(Network):
    """Image (B, in_channels, I, J, K) -> logits (B, out_channels, I, J, K).

    I, J, K must be multiples of `stride(depth)`. `up_convolution` only says how the first
    convolution after an upsampling is computed: `split` convolves the skip's and the upsampled
    channels separately and never builds the upsampled tensor (1.4 times fewer multiplications, same
    numbers to rounding); `plain` is the textbook form and the reference of the tests.
    """

    first, head_name = ("down.0.0.weight",), "head"

    def __init__(
        self,
        depth: int,
        base_filters: int,
        in_channels: int = 4,
        out_channels: int = 3,
        up_convolution: UpConvolution = "split",
    ) -> None:
        super().__init__()
        self.depth, self.base_filters = depth, base_filters
        self.up_convolution: UpConvolution = up_convolution
        narrow = [base_filters * 2**level for level in range(depth)]
        wide = [2 * n for n in narrow]
        self.down = nn.ModuleList(
            _two_convolutions(c_in, n, w)
            for c_in, n, w in zip([in_channels, *wide], narrow, wide, strict=False)
        )
        self.up = nn.ModuleList(
            _two_convolutions(wide[level + 1] + wide[level], wide[level], wide[level])
            for level in reversed(range(depth - 1))
        )
        self.head = nn.Conv3d(wide[0], out_channels, kernel_size=1)

    def forward(self, image_BCIJK: Tensor) -> Tensor:
        """Logits of the same spatial size.

        Raises:
            ParamsError: a side that is not a multiple of the stride.
        """
        check_size(tuple(image_BCIJK.shape[2:]), self.depth)
        return self.head(self.from_level(0, image_BCIJK))  # type: ignore[no-any-return]

    def from_level(self, level: int, x: Tensor) -> Tensor:
        """The output of a level and all below it, from the level's input."""
        skip = self.descend(level, x)
        if level == self.depth - 1:
            return skip
        low = self.from_level(level + 1, F.max_pool3d(skip, 2))
        return self.ascend(level, low, skip)

    def descend(self, level: int, x: Tensor) -> Tensor:
        """A level's two convolutions on the way down: its skip."""
        first, second = self.down[level].children()
        return F.relu(second(F.relu(first(x))))

    def ascend(self, level: int, low: Tensor, skip: Tensor) -> Tensor:
        """A level's two convolutions on the way up, over the level below's output and the skip."""
        first, second = self.up[self.depth - 2 - level].children()
        return F.relu(second(F.relu(self._over_upsampled(first, low, skip))))

    @property
    def encoder(self) -> Sequence[nn.Module]:
        """The way down."""
        return [self.down]

    def _over_upsampled(self, conv: nn.Module, low: Tensor, skip: Tensor) -> Tensor:
        """`conv` over [low upsampled by 2, skip]."""
        if self.up_convolution == "plain":
            upsampled = F.interpolate(low, scale_factor=2, mode="nearest")
            return conv(torch.cat([upsampled, skip], dim=1))  # type: ignore[no-any-return]
        assert isinstance(conv, nn.Conv3d)
        kernel_low, kernel_skip = conv.weight.split([low.shape[1], skip.shape[1]], dim=1)
        taps = torch.tensor(_TAPS, dtype=conv.weight.dtype, device=conv.weight.device)
        kernel = torch.einsum("oiabc,xa,yb,zc->ioxyz", kernel_low, taps, taps, taps)
        from_low = F.conv_transpose3d(low, kernel, stride=2, padding=1)
        return F.conv3d(skip, kernel_skip, conv.bias, padding=1) + from_low


def _two_convolutions(c_in: int, c_between: int, c_out: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            nn.Conv3d(c_in, c_between, kernel_size=3, padding=1),
            nn.Conv3d(c_between, c_out, kernel_size=3, padding=1),
        ]
    )


def initialize(model: nn.Module, seed: int) -> None:
    """Fill in He-normal kernels (He et al., 2015, arXiv:1502.01852) and zero biases, seeded."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of trainable and of other parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters()) - trainable


def stride(depth: int) -> int:
    """Voxels that every side of an input must be a multiple of."""
    return int(2 ** (depth - 1))


def check_size(size_vox: tuple[int, ...], depth: int, cube_vox: int = 1) -> None:
    """Refuse a size that pooling can't halve often enough; the error names the nearest ones.

    Args:
        size_vox: of the image.
        depth: of the network.
        cube_vox: how many voxels a side are one voxel of the network.

    Raises:
        ParamsError: a side that is not a multiple of `stride(depth)` cubes.
    """
    step = stride(depth) * cube_vox
    if any(side % step for side in size_vox):
        below = "x".join(str(max(step, side // step * step)) for side in size_vox)
        above = "x".join(str(-(-side // step) * step) for side in size_vox)
        raise ParamsError(
            "patch size",
            wanted=f"sides that are multiples of {step}, as depth {depth} asks: {below} or {above}",
            got="x".join(map(str, size_vox)),
        )


def receptive_radius_vox(depth: int) -> int:
    """How far from a voxel its output can depend on the input, along any axis.

    Two convolutions reach 2 voxels. With a level below they reach 2 going down and 2 going up,
    twice what that level reaches, and 1 more from one end of a pooling window to the other:
    r(1) = 2, r(d + 1) = 2 r(d) + 5.
    """
    return 7 * stride(depth) - 5
