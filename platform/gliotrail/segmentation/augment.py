"""nnU-Net's random changes of a patch (Isensee et al., 2021, arXiv:1904.08128, supplement 4).

Each is made with a probability of its own, by the sample's random numbers alone. Images are
(C, I, J, K) float32, standardised over the brain. The background stays exactly 0.
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional as F

from gliotrail.imaging.geometry import Box, Vox3, vox3
from gliotrail.params import Augment

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

_ANGLE: Final = math.radians(30)
_SCALE: Final = (0.7, 1.4)
_NOISE_VARIANCE: Final = (0.0, 0.1)
_BLUR_SIGMA_VOX: Final = (0.5, 1.0)
_FACTOR: Final = (0.75, 1.25)
_ZOOM: Final = (0.5, 1.0)
_GAMMA: Final = (0.7, 1.5)
_EACH_CHANNEL: Final = 0.5  # of blurring and low resolution: the share of channels
_INVERTED: Final = 0.25  # of gammas: the share on the inverted image


def placement(augment: Augment, rng: np.random.Generator) -> Matrix | None:
    """How a patch is turned and scaled: offsets from its centre -> the scan's. None: not at all.

    Rotation about all three axes by up to 30 degrees, and one scale for all axes.
    """
    turned, scaled = rng.random() < augment.rotate, rng.random() < augment.scale
    if not (turned or scaled):
        return None
    matrix = np.eye(3)
    if turned:
        for axis, angle in enumerate(rng.uniform(-_ANGLE, _ANGLE, 3)):
            one, other = [n for n in range(3) if n != axis]
            turn = np.eye(3)
            turn[one, one] = turn[other, other] = math.cos(angle)
            turn[one, other], turn[other, one] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turn
    return matrix * rng.uniform(*_SCALE) if scaled else matrix


def source_box(corner_vox: Vox3, size_vox: Vox3, matrix: Matrix) -> Box:
    """All that a patch, turned and scaled about its centre, is made from."""
    half = np.abs(matrix) @ ((np.array(size_vox) - 1) / 2)
    centre = np.array(corner_vox) + (np.array(size_vox) - 1) / 2
    start, stop = np.floor(centre - half), np.ceil(centre + half) + 1
    return Box(vox3(start.astype(int)), vox3(stop.astype(int)))


def warp(
    image_CIJK: Floats,
    labels_IJK: npt.NDArray[np.uint8],
    box: Box,
    corner_vox: Vox3,
    size_vox: Vox3,
    matrix: Matrix,
) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """The turned and scaled patch: image trilinear, labels and background of the nearest voxel.

    Args:
        image_CIJK: what `source_box` asks for, as `labels_IJK`.
        box: where it is, as `source_box` gave it.
        corner_vox: of the patch, and its `size_vox`.
        matrix: as `placement` gave it.
    """
    extent = np.array(box.size_vox) - 1
    half = (np.array(size_vox) - 1) / 2
    centre = np.array(corner_vox) + half - np.array(box.start_vox)
    # torch counts both grids from -1 to 1, corner voxel to corner voxel, k first
    scaled = matrix * half[None, :] * (2 / extent)[:, None]
    shift = centre * 2 / extent - 1
    theta = np.concatenate([scaled[::-1, ::-1], shift[::-1, None]], axis=1)
    grid = F.affine_grid(
        torch.from_numpy(theta.copy()).float()[None], [1, 1, *size_vox], align_corners=True
    )
    brain_IJK = (image_CIJK != 0).any(axis=0)
    codes_CIJK = np.stack([labels_IJK, brain_IJK]).astype(np.float32)

    def sampled(array: Floats, mode: str) -> Floats:
        volume = torch.from_numpy(np.ascontiguousarray(array))[None]
        return F.grid_sample(volume, grid, mode, align_corners=True)[0].numpy()

    labels, brain = sampled(codes_CIJK, "nearest")
    return sampled(image_CIJK, "bilinear") * brain, labels.astype(np.uint8)


def changes_intensities(augment: Augment) -> bool:
    """Whether any of the changes below is asked for."""
    of = augment
    shares = (of.noise, of.blur, of.brightness, of.contrast, of.low_resolution, of.gamma)
    return any(shares)


def change_intensities(image_CIJK: Floats, augment: Augment, rng: np.random.Generator) -> Floats:
    """Noise, blur, brightness, contrast, low resolution and gamma, in nnU-Net's order."""
    brain_IJK = (image_CIJK != 0).any(axis=0)
    image = np.array(image_CIJK, order="C")
    channels = len(image)
    if rng.random() < augment.noise:
        deviation = math.sqrt(rng.uniform(*_NOISE_VARIANCE))
        image = image + deviation * rng.standard_normal(image.shape, np.float32)
    if rng.random() < augment.blur:
        sigmas = rng.uniform(*_BLUR_SIGMA_VOX, channels)
        for channel in np.flatnonzero(rng.random(channels) < _EACH_CHANNEL):
            image[channel] = ndimage.gaussian_filter(image[channel], sigmas[channel], truncate=3)
    if rng.random() < augment.brightness:
        image = image * _factors(rng, channels)
    if rng.random() < augment.contrast:
        image = _contrast(image, brain_IJK, _factors(rng, channels))
    if rng.random() < augment.low_resolution:
        zooms = rng.uniform(*_ZOOM, channels)
        for channel in np.flatnonzero(rng.random(channels) < _EACH_CHANNEL):
            image[channel] = _low_resolution(image[channel], zooms[channel])
    if rng.random() < augment.gamma:
        sign = -1 if rng.random() < _INVERTED else 1
        for c, gamma in enumerate(rng.uniform(*_GAMMA, channels).tolist()):
            image[c] = sign * _gamma(sign * image[c], brain_IJK, gamma)
    changed: Floats = image.astype(np.float32, copy=False) * brain_IJK
    return changed


def _factors(rng: np.random.Generator, channels: int) -> Floats:
    return rng.uniform(*_FACTOR, (channels, 1, 1, 1)).astype(np.float32)


def _contrast(image: Floats, brain_IJK: npt.NDArray[np.bool_], factors: Floats) -> Floats:
    """Away from each channel's mean or towards it, within the range that it had."""
    values = image[:, brain_IJK]
    if not values.size:
        return image
    mean, low, high = (of(values, axis=1)[:, None, None, None] for of in (np.mean, np.min, np.max))
    return np.clip((image - mean) * factors + mean, low, high)  # type: ignore[no-any-return]


def _low_resolution(channel_IJK: Floats, zoom: float) -> Floats:
    volume = torch.from_numpy(np.ascontiguousarray(channel_IJK))[None, None]
    small = [max(1, round(n * zoom)) for n in channel_IJK.shape]
    lower = F.interpolate(volume, small, mode="nearest")
    back: Any = F.interpolate(lower, channel_IJK.shape, mode="trilinear", align_corners=False)
    return back[0, 0].numpy()  # type: ignore[no-any-return]


def _gamma(channel_IJK: Floats, brain_IJK: npt.NDArray[np.bool_], gamma: float) -> Floats:
    """The brain's values to a power, between the same ends, with the same mean and deviation."""
    values = channel_IJK[brain_IJK]
    if not values.size or values.min() == values.max():
        return channel_IJK
    low, high = values.min(), values.max()
    powered = ((values - low) / (high - low)) ** np.float32(gamma)
    deviation = powered.std()
    changed = np.zeros_like(channel_IJK)
    changed[brain_IJK] = (powered - powered.mean()) / deviation * values.std() + values.mean()
    return changed
