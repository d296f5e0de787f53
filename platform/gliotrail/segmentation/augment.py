"""nnU-Net's random changes of a patch (Isensee et al., 2021, arXiv:1904.08128, supplement 4).

Each is made with a probability of its own, by the sample's random numbers alone. Images are
(C, I, J, K) float32, standardised over the foreground. The background stays exactly 0. In memory i
is the fastest, as `imaging.prepared.read_patch` gives them; inside they are (C, K, J, I).
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from gliotrail.errors import ParamsError
from gliotrail.imaging import kernels
from gliotrail.imaging.geometry import Box, Vox3, vox3
from gliotrail.own_parts import own_part, tried
from gliotrail.params import Augment

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

Labels = npt.NDArray[np.uint8]
Change = Callable[[Floats, Labels, np.random.Generator], tuple[Floats, Labels]]
"""A change of your own: an image (C, I, J, K) and its labels (I, J, K), changed by random numbers
from the generator alone. Types and shapes stay; background is 0 in all channels."""

_ANGLE: Final = math.radians(30)
_SCALE: Final = (0.7, 1.4)
_NOISE_VARIANCE: Final = (0.0, 0.1)
_BLUR_SIGMA_VOX: Final = (0.5, 1.0)
_FACTOR: Final = (0.75, 1.25)
_ZOOM: Final = (0.5, 1.0)
_GAMMA: Final = (0.7, 1.5)
_EACH_CHANNEL: Final = 0.5  # share of the channels that are blurred, or of low resolution
_INVERTED: Final = 0.25  # share of the gammas that are on the inverted image


def placement(augment: Augment, rng: np.random.Generator) -> Matrix | None:
    """How a patch is turned and scaled: offsets from its centre -> the scan's; None if it isn't.

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
    """The voxels that a patch, turned and scaled about its centre, is made from."""
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
    fused: bool = False,
) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """The turned and scaled patch: image trilinear, labels and background of the nearest voxel.

    Args:
        image_CIJK: the voxels of `box`, like `labels_IJK`.
        box: as `source_box` gave it.
        corner_vox: of the patch, and its `size_vox`.
        matrix: as `placement` gave it.
        fused: by a compiled kernel where there is one; the same to the last bit.
    """
    centre_vox = np.array(corner_vox) + (np.array(size_vox) - 1) / 2 - np.array(box.start_vox)
    image_CKJI = np.ascontiguousarray(image_CIJK.transpose(0, 3, 2, 1))
    labels_KJI = np.ascontiguousarray(labels_IJK.transpose(2, 1, 0))
    out_CKJI = np.empty((len(image_CIJK), *size_vox[::-1]), np.float32)
    out_KJI = np.empty(size_vox[::-1], np.uint8)
    kernel = kernels.compiled(kernels.warp) if fused else None
    (kernel or _warp)(image_CKJI, labels_KJI, matrix, centre_vox, out_CKJI, out_KJI)
    return out_CKJI.transpose(0, 3, 2, 1), out_KJI.transpose(2, 1, 0)


def _warp(
    image: Floats,
    labels: npt.NDArray[np.uint8],
    matrix: Matrix,
    centre_vox: Matrix,
    out: Floats,
    out_labels: npt.NDArray[np.uint8],
) -> None:
    """Like `kernels.warp`, one k after the other."""
    _, n_k, n_j, n_i = out.shape
    of_i = np.arange(n_i)[None, :] - (n_i - 1) / 2
    of_j = np.arange(n_j)[:, None] - (n_j - 1) / 2
    for k in range(n_k):
        near, low, high, part = [], [], [], []
        for a in range(3):
            last = image.shape[3 - a] - 1
            there = matrix[a, 0] * of_i + matrix[a, 1] * of_j + matrix[a, 2] * (k - (n_k - 1) / 2)
            there = np.minimum(np.maximum(there + centre_vox[a], 0.0), float(last))
            near.append((there + 0.5).astype(np.int64))
            low.append(there.astype(np.int64))
            high.append(np.minimum(low[a] + 1, last))
            part.append((there - low[a]).astype(np.float32))
        out_labels[k] = labels[near[2], near[1], near[0]]
        planes = []
        for of_k in (low[2], high[2]):  # along i, then j, then k
            lines = []
            for of_j_there in (low[1], high[1]):
                left = image[:, of_k, of_j_there, low[0]]
                lines.append(left + (image[:, of_k, of_j_there, high[0]] - left) * part[0])
            planes.append(lines[0] + (lines[1] - lines[0]) * part[1])
        some = (image[:, near[2], near[1], near[0]] != 0).any(axis=0)
        out[:, k] = np.where(some, planes[0] + (planes[1] - planes[0]) * part[2], np.float32(0))


def changes_intensities(augment: Augment) -> bool:
    """Whether any of the changes below is switched on."""
    of = augment
    shares = (of.noise, of.blur, of.brightness, of.contrast, of.low_resolution, of.gamma)
    return any(shares)


def change_intensities(image_CIJK: Floats, augment: Augment, rng: np.random.Generator) -> Floats:
    """Noise, blur, brightness, contrast, low resolution and gamma, in nnU-Net's order."""
    image = np.array(image_CIJK.transpose(0, 3, 2, 1), order="C")  # (C, K, J, I)
    foreground = (image != 0).any(axis=0)
    channels = len(image)
    if rng.random() < augment.noise:
        deviation = np.float32(math.sqrt(rng.uniform(*_NOISE_VARIANCE)))
        image += deviation * rng.standard_normal(image.shape, np.float32)
    if rng.random() < augment.blur:
        sigmas = rng.uniform(*_BLUR_SIGMA_VOX, channels)
        for channel in np.flatnonzero(rng.random(channels) < _EACH_CHANNEL):
            image[channel] = _blur(image[channel], sigmas[channel])
    if rng.random() < augment.brightness:
        image *= _factors(rng, channels)
    if rng.random() < augment.contrast:
        factors = _factors(rng, channels)
        for c in range(channels):
            _contrast(image[c], foreground, factors[c, 0, 0, 0])
    if rng.random() < augment.low_resolution:
        zooms = rng.uniform(*_ZOOM, channels)
        for channel in np.flatnonzero(rng.random(channels) < _EACH_CHANNEL):
            image[channel] = _low_resolution(image[channel], zooms[channel])
    if rng.random() < augment.gamma:
        sign = np.float32(-1 if rng.random() < _INVERTED else 1)
        for c, gamma in enumerate(rng.uniform(*_GAMMA, channels).tolist()):
            image[c] = sign * _gamma(sign * image[c], foreground, gamma)
    image *= foreground
    return image.transpose(0, 3, 2, 1)


def _factors(rng: np.random.Generator, channels: int) -> Floats:
    return rng.uniform(*_FACTOR, (channels, 1, 1, 1)).astype(np.float32)


def _blur(channel: Floats, sigma_vox: float) -> Floats:
    """Blur by a Gaussian, cut off at three deviations; the image is mirrored beyond its edge."""
    radius = int(3 * sigma_vox + 0.5)
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma_vox) ** 2)
    weights = (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
    for axis, n in enumerate(channel.shape):
        reach = min(radius, n)
        padded = np.pad(channel, [(reach * (a == axis),) * 2 for a in range(3)], "symmetric")
        shifted = [np.take(padded, range(at, at + n), axis) for at in range(2 * reach + 1)]
        channel = shifted[reach] * weights[0]
        for distance in range(1, reach + 1):
            pair = shifted[reach - distance] + shifted[reach + distance]
            channel += pair * weights[distance]
    return channel


def _contrast(channel: Floats, foreground: npt.NDArray[np.bool_], factor: np.float32) -> None:
    """Scale the foreground's values about their mean, clipped to their old range; in place."""
    values = channel[foreground]
    if values.size:
        mean, low, high = values.mean(), values.min(), values.max()
        channel[foreground] = np.clip((values - mean) * factor + mean, low, high)


def _low_resolution(channel: Floats, zoom: float) -> Floats:
    """The channel at fewer voxels (nearest) and back (linear between their centres)."""
    shape = channel.shape
    for axis, n in enumerate(shape):
        small = max(1, round(n * zoom))
        channel = np.take(channel, np.arange(small) * n // small, axis)
    for axis, n in enumerate(shape):
        small = channel.shape[axis]
        there = np.clip((np.arange(n) + 0.5) * small / n - 0.5, 0, small - 1)
        low = there.astype(np.int64)
        part = (there - low).astype(np.float32).reshape([n if a == axis else 1 for a in range(3)])
        below = np.take(channel, low, axis)
        channel = below + (np.take(channel, np.minimum(low + 1, small - 1), axis) - below) * part
    return channel


def _gamma(channel: Floats, foreground: npt.NDArray[np.bool_], gamma: float) -> Floats:
    """The foreground's values to a power; least, largest, mean and deviation stay the same."""
    values = channel[foreground]
    if not values.size or values.min() == values.max():
        return channel
    low, high = values.min(), values.max()
    with np.errstate(
        divide="ignore"
    ):  # of 0, which stays 0; numpy's own power takes thrice as long
        powered = np.exp(np.log((values - low) / (high - low)) * np.float32(gamma))
    deviation = powered.std()
    changed = np.zeros_like(channel)
    changed[foreground] = (powered - powered.mean()) / deviation * values.std() + values.mean()
    return changed


def own_changes(
    image_CIJK: Floats, labels_IJK: Labels, augment: Augment, seed: tuple[int, int]
) -> tuple[Floats, Labels]:
    """The changes of your own, one after another, each with random numbers of its own.

    Raises:
        ParamsError: as `own_part`.
    """
    for n, name in enumerate(augment.own):
        change: Change = own_part(name, "train.augment.own")
        rng = np.random.default_rng((*seed, 2 + n))
        image_CIJK, labels_IJK = change(image_CIJK, labels_IJK, rng)
    return image_CIJK, labels_IJK


def check_changes(augment: Augment, channels: int) -> None:
    """Try each change of your own twice on a patch.

    Raises:
        ParamsError: it gives another shape or type, or another result the second time.
    """
    wanted = "(image, labels, rng) to both, of the same shapes and types, by rng alone"
    for name in augment.own:
        alone = augment.model_copy(update={"own": (name,)})
        image = np.random.default_rng(0).standard_normal((channels, 8, 8, 8), np.float32)
        labels = np.ones((8, 8, 8), np.uint8)
        with tried(f"train.augment.own: {name}", wanted):
            one, other = (own_changes(image.copy(), labels.copy(), alone, (0, 0)) for _ in "12")
            kinds = [f"{of.dtype} {of.shape}" for of in one]
            same = np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
        if kinds != [f"{of.dtype} {of.shape}" for of in (image, labels)] or not same:
            got = " and ".join(kinds) + ("" if same else ", another result the second time")
            raise ParamsError(f"train.augment.own: {name}", wanted=wanted, got=got)
