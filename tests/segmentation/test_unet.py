import math

import pytest
import torch

from gliotrail.errors import ParamsError
from gliotrail.segmentation.unet import (
    UNet3d,
    check_size,
    count_parameters,
    initialize,
    receptive_radius_vox,
    stride,
)

LAYERS = [
    (4, 32, 3_488),
    (32, 64, 55_360),
    (64, 64, 110_656),
    (64, 128, 221_312),
    (192, 64, 331_840),
    (64, 64, 110_656),
    (64, 3, 195),
]
"""Channels in and out, and parameters, of the course's network."""


def network(depth: int, base: int, seed: int = 1, **shape: int) -> UNet3d:
    """In float64, so that what differs is no rounding."""
    model = UNet3d(depth, base, **shape).double()
    initialize(model, seed)
    return model


def image(*shape: int, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("depth", "n"), [(2, 833_507), (3, 3_930_723), (4, 16_318_307)])
def test_the_number_of_parameters(depth, n):
    with torch.device("meta"):
        assert count_parameters(UNet3d(depth, 32)) == (n, 0)


def test_frozen_parameters_are_other_ones():
    model = UNet3d(2, 4)
    model.head.requires_grad_(False)
    trainable, other = count_parameters(model)
    assert other == 3 * 8 + 3
    assert trainable + other == sum(p.numel() for p in model.parameters())


def test_every_layer_of_depth_2_is_the_one_of_the_table():
    layers = [layer for layer in UNet3d(2, 32).modules() if isinstance(layer, torch.nn.Conv3d)]
    rows = [(la.in_channels, la.out_channels, sum(count_parameters(la))) for la in layers]
    assert rows == LAYERS
    assert [layer.kernel_size for layer in layers] == [(3, 3, 3)] * 6 + [(1, 1, 1)]


def test_the_upsampled_channels_come_before_the_skip_s():
    """With the kernel of the upsampled channels at 0, the level below has no say."""
    model = network(2, 2)
    first = model.up[0][0]
    below = model.down[1][1].out_channels
    with torch.no_grad():
        first.weight[:, :below] = 0
        before = model(image(1, 4, 4, 4, 4))
        model.down[1][0].weight += 1
        assert torch.equal(model(image(1, 4, 4, 4, 4)), before)
        first.weight[:, :below] = 1
        assert not torch.equal(model(image(1, 4, 4, 4, 4)), before)


@pytest.mark.parametrize(
    ("depth", "base", "channels", "classes", "size"),
    [
        (2, 4, 4, 3, (6, 4, 8)),
        (2, 3, 5, 1, (2, 2, 2)),
        (3, 3, 4, 3, (4, 8, 12)),
        (4, 1, 3, 7, (8, 8, 16)),
    ],
)
def test_the_split_up_convolution_equals_the_plain_one(depth, base, channels, classes, size):
    split = network(depth, base, in_channels=channels, out_channels=classes)
    plain = UNet3d(depth, base, channels, classes, up_convolution="plain").double()
    plain.load_state_dict(split.state_dict())
    results = []
    for model in (split, plain):
        x = image(2, channels, *size).requires_grad_()
        logits = model(x)
        assert logits.shape == (2, classes, *size)
        (logits * image(*logits.shape, seed=3)).sum().backward()
        results.append([logits, x.grad, *(p.grad for p in model.parameters())])
    assert len(results[0]) == 2 + 2 * (4 * depth - 1)
    for ours, wanted in zip(*results, strict=True):
        assert (ours - wanted).abs().max() <= 1e-12 * wanted.abs().max()
        assert wanted.abs().max() > 0


def reaches_vox(depth: int, axis: int) -> list[int]:
    """How far autograd finds input that a logit depends on, one a place within the stride.

    A maximum passes its gradient to one input alone, so several images are looked at.
    """
    model = UNet3d(depth, 1)
    initialize(model, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()  # so that nothing cancels and every ReLU is open
    size = [2 * stride(depth)] * 3
    size[axis] = 14 * stride(depth)
    x = image(6, 4, *size).abs().float().requires_grad_()
    logits = model(x).movedim(2 + axis, 2)
    reaches = []
    for voxel in range(7 * stride(depth), 8 * stride(depth)):
        (gradient,) = torch.autograd.grad(logits[:, :, voxel].sum(), x, retain_graph=True)
        seen = gradient.movedim(2 + axis, 0).flatten(1).any(1).nonzero()[:, 0]
        assert 0 < seen.min() < seen.max() < size[axis] - 1  # the image is large enough to tell
        reaches.append(int((seen - voxel).abs().max()))
    return reaches


@pytest.mark.parametrize(
    ("depth", "axis", "radius"), [(1, 0, 2), (2, 0, 9), (2, 1, 9), (2, 2, 9), (3, 0, 23)]
)
def test_the_receptive_radius_is_what_autograd_finds(depth, axis, radius):
    assert max(reaches_vox(depth, axis)) == receptive_radius_vox(depth) == radius


@pytest.mark.parametrize(("depth", "flipped"), [(2, (2,)), (2, (3,)), (2, (4,)), (3, (2, 3, 4))])
def test_mirrored_kernels_give_the_mirrored_image_the_mirrored_logits(depth, flipped):
    model = network(depth, 3)
    x = image(1, 4, 8, 12, 16)
    wanted = model(x).flip(flipped)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.flip(flipped) if p.ndim == 5 else p)
        logits = model(x.flip(flipped))
        assert (logits - wanted).abs().max() < 1e-12 * wanted.abs().max()
        assert (model(x) - wanted).abs().max() > 1e-3 * wanted.abs().max()


@pytest.mark.parametrize(
    ("depth", "size", "wanted"),
    [
        (3, (18, 16, 7), "multiples of 4, as depth 3 asks: 16x16x4 or 20x16x8, got 18x16x7"),
        (4, (3, 16, 8), "multiples of 8, as depth 4 asks: 8x16x8 or 8x16x8, got 3x16x8"),
    ],
)
def test_a_size_that_pooling_can_t_halve_is_refused_naming_the_nearest(depth, size, wanted):
    with pytest.raises(ParamsError) as refused:
        UNet3d(depth, 1)(torch.zeros(1, 4, *size))
    assert str(refused.value).endswith(wanted)
    check_size((8, 16, 24), depth)


def test_any_size_goes_through_a_network_of_depth_1():
    assert UNet3d(1, 1)(torch.zeros(1, 4, 5, 3, 7)).shape == (1, 3, 5, 3, 7)


def test_the_same_seed_is_the_same_weights_whatever_was_drawn_before():
    torch.manual_seed(1)
    ours, same = network(2, 4, seed=5), network(2, 4, seed=5)
    other = network(2, 4, seed=6)
    for name, weights in ours.state_dict().items():
        assert torch.equal(same.state_dict()[name], weights)
        assert torch.equal(other.state_dict()[name], weights) == name.endswith("bias")


def test_weights_start_he_normal_and_biases_at_0():
    model = network(2, 32)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv3d):
            fan_in = layer.in_channels * math.prod(layer.kernel_size)
            std = layer.weight.std().item()
            # four standard errors of a std
            slack = 4 / math.sqrt(2 * layer.weight.numel())
            assert std == pytest.approx(math.sqrt(2 / fan_in), rel=slack)
            assert not layer.bias.any()
