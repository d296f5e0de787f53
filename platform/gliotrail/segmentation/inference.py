"""Whole-scan prediction, exact and in bounded memory.

The network has no normalisation, so an output depends on the input only within its receptive
field: a slab computed with a halo of that radius equals the same voxels of one pass over the whole
prepared array (the brain's box, padded at its far end to whole strides). Outside the brain's box
there is no tissue, hence no tumour.

A network with normalisation is not exact that way: each voxel's output depends on all that is seen
with it. It sees windows of the size of its patches, which overlap by half, and their probabilities
are averaged with Gaussian weights (as nnU-Net does, arXiv:1904.08128), by MONAI.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gliotrail.imaging.geometry import Box, vox3
from gliotrail.imaging.labels import CLASSES, Labels
from gliotrail.imaging.prepared import PreparedCase, case_of_array, read_patch
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.unet import receptive_radius_vox, stride

SLAB_VALUES: Final = 48_000_000
"""Voxels of a slab, halo included, times base filters: 32 bytes each, about 1.5 GiB."""


def predict_box(
    model: Network,
    case: PreparedCase,
    box: Box,
    standardize: str,
    slab_values: int = SLAB_VALUES,
) -> npt.NDArray[np.float32]:
    """Probabilities (classes, I, J, K) for a box of the scan (RAS+ voxels)."""
    probabilities = np.zeros((len(CLASSES), *box.size_vox), np.float32)
    for slab, seen in _slabs(model, box.meet(case.box), case.box, slab_values):
        image_CIJK = read_patch(case, seen, standardize)
        inside = slab.shifted([-s for s in seen.start_vox])
        placed = slab.shifted([-s for s in box.start_vox])
        probabilities[:, *placed.slices] = forward(model, image_CIJK)[:, *inside.slices]
    return probabilities


def predict_case(
    model: Network, case: PreparedCase, standardize: str, slab_values: int = SLAB_VALUES
) -> npt.NDArray[np.float32]:
    """Probabilities (classes, I, J, K) for a whole scan, on its RAS+ grid."""
    return predict_box(model, case, Box((0, 0, 0), case.ras_shape_vox), standardize, slab_values)


def segment_array(
    model: Network,
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
def forward(model: Network, image_CIJK: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Image (C, I, J, K) -> probabilities (classes, I, J, K), in one pass or by windows."""

    def predict(image: Tensor) -> Tensor:
        return model(image.contiguous(memory_format=torch.channels_last_3d)).sigmoid()  # type: ignore[no-any-return]

    weight = next(model.parameters())
    image = torch.from_numpy(image_CIJK)[None].to(weight.device, weight.dtype)
    probabilities = (
        predict(image) if model.window_vox is None else _by_windows(model, image, predict)
    )
    return probabilities[0].float().cpu().numpy()


def _by_windows(model: Network, image: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
    from monai.inferers.utils import sliding_window_inference

    size_vox = model.window_vox
    assert size_vox is not None
    merged = sliding_window_inference(image, size_vox, 1, predict, overlap=0.5, mode="gaussian")
    assert isinstance(merged, Tensor)
    return merged


def _slabs(model: Network, wanted: Box, whole: Box, slab_values: int) -> Iterator[tuple[Box, Box]]:
    """Cut `wanted` along i, so that each piece with its halo fits: the piece, and with its halo."""
    if 0 in wanted.size_vox:
        return
    if model.window_vox is not None:
        yield wanted, wanted
        return
    depth = model.depth
    i, j, k = _with_halo(wanted, whole, depth).size_vox
    thickness = slab_values // model.base_filters // (j * k)
    if thickness < i:
        halo = receptive_radius_vox(depth) + stride(depth)
        thickness = max(stride(depth), thickness - 2 * halo)
    for start in range(wanted.start_vox[0], wanted.stop_vox[0], thickness):
        stop = min(start + thickness, wanted.stop_vox[0])
        slab = Box((start, *wanted.start_vox[1:]), (stop, *wanted.stop_vox[1:]))
        yield slab, _with_halo(slab, whole, depth)


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
