"""Whole-scan prediction in bounded memory.

A U-Net without normalisation is computed in blocks (see `blocks`): the same numbers as one pass
over the whole prepared array (the foreground's box, padded at its far end to whole strides). A box
of the scan is read with a margin of the network's receptive field. Outside the foreground's box
there is no tissue, hence no tumour.

With normalisation, blocks would give other numbers: a voxel's output depends on the whole input.
Such a network predicts windows of the size of its patches, which overlap by half, and their
probabilities are averaged with Gaussian weights (as nnU-Net does, arXiv:1904.08128), by MONAI.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gliotrail.dataset.task import Channel
from gliotrail.imaging.geometry import Box, vox3
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.prepared import Intensities, PreparedCase, case_of_array, read_patch
from gliotrail.segmentation.blocks import FLOATS, predict_in_blocks
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.precision import convolutions_in
from gliotrail.segmentation.unet import UNet3d, receptive_radius_vox, stride

CPU_BYTES: Final = 1_536_000_000
"""The memory of features at a time, on a CPU."""
_OF_FREE: Final = 0.5  # share of a GPU's free memory; cuDNN takes as much again for itself
_MOST_WINDOWS: Final = 16


def predict_box(
    model: Network,
    case: PreparedCase,
    box: Box,
    standardize: str,
    most_bytes: int | None = None,
) -> npt.NDArray[np.float32]:
    """Probabilities (classes, I, J, K) for a box of the scan (RAS+ voxels).

    Args:
        most_bytes: as `forward`.
    """
    probabilities = np.zeros((model.n_outputs, *box.size_vox), np.float32)
    wanted = box.meet(case.box)
    if 0 in wanted.size_vox:
        return probabilities
    seen = _with_halo(wanted, case.box, model.depth) if model.window_vox is None else wanted
    inside = wanted.shifted([-s for s in seen.start_vox])
    placed = wanted.shifted([-s for s in box.start_vox])
    seen_CIJK = forward(model, read_patch(case, seen, standardize), most_bytes)
    probabilities[:, *placed.slices] = seen_CIJK[:, *inside.slices]
    return probabilities


def predict_case(
    model: Network, case: PreparedCase, standardize: str, most_bytes: int | None = None
) -> npt.NDArray[np.float32]:
    """Probabilities (classes, I, J, K) for a whole scan, on its RAS+ grid."""
    return predict_box(model, case, Box((0, 0, 0), case.ras_shape_vox), standardize, most_bytes)


def segment_array(
    model: Network,
    image_CIJK: npt.NDArray[Any],
    standardize: str,
    channels: Sequence[Channel],
    intensities: Intensities,
    threshold: float = 0.5,
    affine_ras: npt.NDArray[np.float64] | None = None,
) -> Labels:
    """Raw values (C, I, J, K) of a whole scan in RAS+ -> labels (I, J, K).

    Raises:
        DataError: as `case_of_array`.
    """
    affine = np.eye(4) if affine_ras is None else affine_ras
    case = case_of_array(image_CIJK, affine, "the array", channels, intensities)
    return to_labels(predict_case(model, case, standardize), threshold, model.heads)


def to_labels(
    probabilities_CIJK: npt.NDArray[np.float32], threshold: float, heads: str = "classes"
) -> Labels:
    """The class of largest probability among those above the threshold, background if none.

    With `regions`, the innermost region whose probability (the sum of its classes') is above it.
    """
    if heads == "regions":
        labels = np.zeros(probabilities_CIJK.shape[1:], np.uint8)
        region_IJK = np.zeros(labels.shape, np.float32)
        for label in reversed(range(1, len(probabilities_CIJK) + 1)):
            region_IJK += probabilities_CIJK[label - 1]
            labels[(region_IJK > threshold) & (labels == 0)] = label
        return labels
    winner = probabilities_CIJK.argmax(axis=0).astype(np.uint8) + np.uint8(1)
    winner[probabilities_CIJK.max(axis=0) <= threshold] = 0
    return cast(Labels, winner)


@torch.inference_mode()
def forward(
    model: Network, image_CIJK: npt.NDArray[np.float32], most_bytes: int | None = None
) -> npt.NDArray[np.float32]:
    """Image (C, I, J, K) -> probabilities (classes, I, J, K), in one pass, blocks or windows.

    Args:
        most_bytes: the memory of features at a time; None is CPU_BYTES on a CPU, half of the free
            memory on a GPU.
    """
    if len(model.networks) > 1:
        given = [forward(one, image_CIJK, most_bytes) for one in model.networks.values()]
        return np.mean(given, axis=0)  # type: ignore[no-any-return]
    weight = next(model.parameters())
    most_bytes = _room_bytes(weight.device) if most_bytes is None else most_bytes
    image = torch.from_numpy(image_CIJK)[None].to(weight.device, weight.dtype)
    with convolutions_in("float32"):
        if model.window_vox is None:
            assert isinstance(model, UNet3d)
            image = image.contiguous(memory_format=torch.channels_last_3d)
            probabilities = predict_in_blocks(model, image, most_bytes)
        else:
            probabilities = _by_windows(model, image, most_bytes)
    if model.heads == "regions":
        probabilities = _of_classes(probabilities)
    return probabilities[0].float().cpu().numpy()


def _of_classes(regions_BCIJK: Tensor) -> Tensor:
    """Nested regions' probabilities -> classes': a region's less that of the next one inside."""
    nested_BCIJK = regions_BCIJK.cummin(1).values
    inner_BCIJK = torch.cat([nested_BCIJK[:, 1:], torch.zeros_like(nested_BCIJK[:, :1])], dim=1)
    return nested_BCIJK - inner_BCIJK


def _room_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_OF_FREE * (free + held))


def _by_windows(model: Network, image: Tensor, most_bytes: int) -> Tensor:
    from monai.inferers.utils import sliding_window_inference

    size_vox = model.window_vox
    assert size_vox is not None
    of_one = math.prod(size_vox) * FLOATS * model.base_filters * image.element_size()
    on_gpu = image.device.type == "cuda"  # one window keeps a CPU busy
    at_once = min(_MOST_WINDOWS, max(1, most_bytes // of_one)) if on_gpu else 1

    def predict(windows: Tensor) -> Tensor:
        return model(windows.contiguous(memory_format=torch.channels_last_3d)).sigmoid()  # type: ignore[no-any-return]

    merged = sliding_window_inference(
        image, size_vox, at_once, predict, overlap=0.5, mode="gaussian"
    )
    assert isinstance(merged, Tensor)
    return merged


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
