"""The U-Net over an image of any size in bounded memory: the same numbers as one pass.

One pass keeps every level's features of the whole image at once. Where they don't fit, a level is
computed block by block instead, each block with the few voxels around it that its two convolutions
see. The result of the levels below, an eighth of the size, is kept whole; the level's skip is not
kept but computed again on the way up. The levels below are computed in the same way, until one fits
in a single pass. So margins never add up over levels as a receptive field does, and the cost stays
near that of one pass at every depth.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from gliotrail.imaging.geometry import Box, vox3
from gliotrail.segmentation.unet import UNet3d

FLOATS: Final = 9
"""The most numbers that a pass holds at a time, per voxel and filter of its first level."""
_REACH_VOX: Final = 2  # of two 3x3x3 convolutions


def predict_in_blocks(
    model: UNet3d,
    image_BCIJK: Tensor,
    most_bytes: int,
    finish: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> Tensor:
    """`finish(model(image))` in float32, a block at a time, holding at most `most_bytes`.

    Args:
        image_BCIJK: sides are multiples of `unet.stride(depth)`.
        most_bytes: of features; weights, image and result come on top. Blocks take at least a
            third of it, even if the features that are kept whole leave less.
    """
    shape = (image_BCIJK.shape[0], model.head.out_channels, *image_BCIJK.shape[2:])
    result = image_BCIJK.new_empty(shape, dtype=torch.float32)

    def last(features: Tensor) -> Tensor:
        return finish(model.head(features)).float()

    _level(model, 0, image_BCIJK, most_bytes, most_bytes // 3, last, result)
    return result


def _level(
    model: UNet3d,
    level: int,
    x: Tensor,
    most_bytes: int,
    least_bytes: int,
    finish: Callable[[Tensor], Tensor],
    result: Tensor,
) -> None:
    """Write `finish(model.from_level(level, x))` to `result`."""
    size_vox = vox3(x.shape[2:])
    of_a_voxel = FLOATS * model.base_filters * 2**level * x.shape[0] * x.element_size()
    if math.prod(size_vox) * of_a_voxel <= most_bytes:
        result.copy_(finish(model.from_level(level, x)))
        return
    whole = Box((0, 0, 0), size_vox)
    if level == model.depth - 1:
        for block in _cut(size_vox, most_bytes // of_a_voxel):
            result[:, :, *block.slices] = finish(_descend(model, level, x, block, whole))
        return
    filters, halved = 2 ** (level + 1) * model.base_filters, [side // 2 for side in size_vox]
    pooled = _features(x, filters, halved)
    low = _features(x, 2 * filters, halved)
    kept_bytes = sum(t.numel() * t.element_size() for t in (pooled, low))
    left_bytes = max(most_bytes - kept_bytes, least_bytes)
    blocks = list(_cut(size_vox, left_bytes // of_a_voxel))
    for block in blocks:
        skip = _descend(model, level, x, block, whole)
        pooled[:, :, *_half(block).slices] = F.max_pool3d(skip, 2)
    del skip
    _level(model, level + 1, pooled, left_bytes, least_bytes, lambda features: features, low)
    del pooled
    for block in blocks:
        around = block.grown(_REACH_VOX).meet(whole)
        skip = _descend(model, level, x, around, whole)
        up = model.ascend(level, _part(low, _half(around)), skip)
        result[:, :, *block.slices] = finish(_part(up, block, around))


def _descend(model: UNet3d, level: int, x: Tensor, box: Box, whole: Box) -> Tensor:
    """A box of the level's skip, padded at the edges of the whole input only."""
    seen = box.grown(_REACH_VOX).meet(whole)
    return _part(model.descend(level, _part(x, seen)), box, seen)


def _features(like: Tensor, channels: int, size_vox: list[int]) -> Tensor:
    shape = (like.shape[0], channels, *size_vox)
    return like.new_empty(shape).contiguous(memory_format=torch.channels_last_3d)


def _part(x: Tensor, box: Box, of: Box | None = None) -> Tensor:
    """A box of a tensor that covers the box `of`."""
    inside = box.shifted([-n for n in of.start_vox]) if of else box
    return x[:, :, *inside.slices].contiguous(memory_format=torch.channels_last_3d)


def _half(box: Box) -> Box:
    """The box in voxels of the level below."""
    return Box(vox3([n // 2 for n in box.start_vox]), vox3([n // 2 for n in box.stop_vox]))


def _cut(size_vox: tuple[int, int, int], most_voxels: int) -> Iterator[Box]:
    """Cut into blocks, near to cubes, that begin and end at even voxels.

    With their margins they have at most `most_voxels`, but no side is below twice the margin.
    """
    pieces = [1, 1, 1]
    margin, least = 2 * _REACH_VOX, 4 * _REACH_VOX
    while True:
        sides = [2 * -(-n // (2 * p)) for n, p in zip(size_vox, pieces, strict=True)]
        grown = [min(n, side + 2 * margin) for n, side in zip(size_vox, sides, strict=True)]
        longest = max(range(3), key=lambda axis: sides[axis])
        if math.prod(grown) <= most_voxels or sides[longest] <= least:
            break
        pieces[longest] += 1
    starts = (range(0, n, side) for n, side in zip(size_vox, sides, strict=True))
    for start in product(*starts):
        stop = [min(a + s, n) for a, s, n in zip(start, sides, size_vox, strict=True)]
        yield Box(vox3(start), vox3(stop))
