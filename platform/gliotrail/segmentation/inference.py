"""Whole-scan prediction, exact and in bounded memory.

The network has no normalisation, so an output depends on the input only within its receptive
field: a slab computed with a halo of that radius equals the same voxels of one pass over the whole
prepared array (the brain's box, padded at its far end to whole strides). Outside the brain's box
there is no tissue, hence no tumour.
"""

from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gliotrail.imaging.geometry import Box, vox3
from gliotrail.imaging.labels import CLASSES, Labels
from gliotrail.imaging.prepared import PreparedCase, case_of_array, read_patch
from gliotrail.segmentation.unet import UNet3d, receptive_radius_vox, stride

SLAB_VALUES: Final = 48_000_000
"""Voxels of a slab, halo included, times base filters: 32 bytes each, about 1.5 GiB."""


def predict_box(
    model: UNet3d,
    case: PreparedCase,
    box: Box,
    standardize: str,
    slab_values: int = SLAB_VALUES,
) -> npt.NDArray[np.float32]:
    """Probabilities (classes, I, J, K) for a box of the scan (RAS+ voxels)."""
    probabilities = np.zeros((len(CLASSES), *box.size_vox), np.float32)
    slab_voxels = slab_values // model.base_filters
    for slab in _slabs(box.meet(case.box), case.box, model.depth, slab_voxels):
        seen = _with_halo(slab, case.box, model.depth)
        image_CIJK = read_patch(case, seen, standardize)
        inside = slab.shifted([-s for s in seen.start_vox])
        placed = slab.shifted([-s for s in box.start_vox])
        probabilities[:, *placed.slices] = forward(model, image_CIJK)[:, *inside.slices]
    return probabilities


def predict_case(
    model: UNet3d, case: PreparedCase, standardize: str, slab_values: int = SLAB_VALUES
) -> npt.NDArray[np.float32]:
    """Probabilities (classes, I, J, K) for a whole scan, on its RAS+ grid."""
    return predict_box(model, case, Box((0, 0, 0), case.ras_shape_vox), standardize, slab_values)


def segment_array(
    model: UNet3d,
    image_CIJK: npt.NDArray[Any],
    standardize: str,
    threshold: float = 0.5,
    affine_ras: npt.NDArray[np.float64] | None = None,
) -> Labels:
    """Raw values (C, I, J, K) of a whole scan in RAS+ -> labels (I, J, K).

    Raises:
        DataError: as `case_of_array`.
    """
    affine = np.eye(4) if affine_ras is None else affine_ras
    case = case_of_array(image_CIJK, affine, "the array")
    return to_labels(predict_case(model, case, standardize), threshold)


def to_labels(probabilities_CIJK: npt.NDArray[np.float32], threshold: float) -> Labels:
    """The class of largest probability among those above the threshold, background if none."""
    winner = probabilities_CIJK.argmax(axis=0).astype(np.uint8) + np.uint8(1)
    winner[probabilities_CIJK.max(axis=0) <= threshold] = 0
    return cast(Labels, winner)


@torch.inference_mode()
def forward(model: nn.Module, image_CIJK: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """One pass: image (C, I, J, K) -> probabilities (classes, I, J, K)."""
    weight = next(model.parameters())
    image = torch.from_numpy(image_CIJK)[None].to(weight.device, weight.dtype)
    logits = model(image.contiguous(memory_format=torch.channels_last_3d))
    return logits[0].sigmoid().float().cpu().numpy()  # type: ignore[no-any-return]


def _slabs(wanted: Box, whole: Box, depth: int, slab_voxels: int) -> Iterator[Box]:
    """Cut `wanted` along i so that each piece, with its halo, has at most `slab_voxels`."""
    if 0 in wanted.size_vox:
        return
    i, j, k = _with_halo(wanted, whole, depth).size_vox
    thickness = slab_voxels // (j * k)
    if thickness < i:
        halo = receptive_radius_vox(depth) + stride(depth)
        thickness = max(stride(depth), thickness - 2 * halo)
    for start in range(wanted.start_vox[0], wanted.stop_vox[0], thickness):
        stop = min(start + thickness, wanted.stop_vox[0])
        yield Box((start, *wanted.start_vox[1:]), (stop, *wanted.stop_vox[1:]))


def _with_halo(box: Box, whole: Box, depth: int) -> Box:
    """The box and all that its outputs depend on, cut off at `whole` (padded to whole strides).

    Starts and sizes are multiples of the stride counted from the start of `whole`, so that the
    pooling windows are the same as in one pass.
    """
    step = stride(depth)
    grown = box.grown(receptive_radius_vox(depth)).shifted([-s for s in whole.start_vox])
    ends = [-(-side // step) * step for side in whole.size_vox]
    starts = [max(0, a // step * step) for a in grown.start_vox]
    stops = [min(end, -(-b // step) * step) for b, end in zip(grown.stop_vox, ends, strict=True)]
    return Box(vox3(starts), vox3(stops)).shifted(whole.start_vox)
