"""Synthetic tumours in real anatomy, for pretraining and rehearsal.

A real tumour's shape (a label volume) is turned, scaled and warped, laid into the standardised
scan of a head that has none, and painted into its four modalities. Each tumour's look is drawn
anew from wide ranges: edema bright on FLAIR and T2, graded, following white matter; necrosis dark
on T1; non-enhancing tumour between the two; a thin enhancing rim bright on T1gd. Then the whole
scan is blurred, shaded and re-contrasted to look like other scanners'.

Channels are FLAIR, T1w, T1gd, T2w, standardised over the brain; axes (C, I, J, K) in RAS+.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from gliotrail.dataset.brats import BRATS
from gliotrail.errors import DataError
from gliotrail.imaging.geometry import Box, Vox3, to_ras
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.nifti import read_image

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
CHANNELS: Final = BRATS.channel_names

FILES: Final[Mapping[str, str]] = {
    "FLAIR": "FLAIR.nii.gz", "T1w": "T1.nii.gz", "T1gd": "T1POST.nii.gz", "T2w": "T2.nii.gz",
}  # fmt: skip
LESION_FILE: Final = "lesion_mask.nii.gz"

# Painted intensities relative to normal white matter, in standard deviations of the brain:
# (low, high) for FLAIR, T1w, T1gd, T2w. Ranges after the descriptions of Bakas et al. (2017,
# doi 10.1038/sdata.2017.117) and deliberately wider than any scanner.
_LOOKS: Final[Mapping[str, tuple[tuple[float, float], ...]]] = {
    "edema": ((1.2, 3.8), (-1.9, -0.1), (-2.1, -0.1), (1.0, 3.6)),
    "solid": ((0.0, 2.2), (-2.2, -0.4), (-1.9, 0.0), (0.1, 2.4)),
    "necrosis": ((-0.7, 2.2), (-3.0, -0.9), (-2.8, -0.8), (0.4, 3.6)),
    "enhancing": ((-0.2, 2.2), (-2.0, 0.2), (0.0, 3.6), (-0.2, 2.2)),
}
_LEAST_ENHANCEMENT: Final = 0.8
_MEAN_STD: Final = 3.5
"""A brain's mean in its own standard deviations: shading multiplies raw values."""


@dataclass(frozen=True)
class Anatomy:
    """A head without a tumour, standardised; `unknown` voxels (its own lesions) have no label."""

    name: str
    image_IJKC: Floats
    brain: Mask
    unknown: Mask

    @cached_property
    def white_C(self) -> Floats:
        """The median of each channel over white matter, by its brightness on T1w."""
        t1 = self.image_IJKC[..., CHANNELS.index("T1w")]
        white: Floats = np.median(self.image_IJKC[self.brain & (t1 > 0.5)], axis=0).astype("f4")
        return white

    @cached_property
    def places(self) -> npt.NDArray[np.int64]:
        """Every fourth voxel of the brain along each axis (N, 3)."""
        return np.argwhere(self.brain[::4, ::4, ::4]) * 4


@dataclass(frozen=True)
class Style:
    """The spans to draw from of every range: those of training and validation don't overlap."""

    spans: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    def draw(self, rng: np.random.Generator, low: float, high: float) -> float:
        """A number of [low, high] within the spans; the middle is more frequent (beta(2, 2))."""
        along = rng.beta(2, 2) * sum(b - a for a, b in self.spans)
        for a, b in self.spans:
            if along <= b - a:
                return float(low + (high - low) * (a + along))
            along -= b - a
        return float(high)


def read_anatomy(folder: Path) -> Anatomy:
    """A folder with FLAIR, T1, T1POST, T2 and lesion_mask (.nii.gz) of one skull-stripped head.

    Raises:
        DataError: a file is missing, or their grids differ.
    """
    channels, affine = [], None
    for name in (*CHANNELS, "lesion"):
        path = folder / FILES.get(name, LESION_FILE)
        scan = read_image(path, channels=1)
        if affine is not None and not np.array_equal(affine, scan.affine):
            raise DataError("affine", where=path, wanted="that of the other modalities")
        affine = scan.affine
        channels.append(to_ras(scan.array[..., 0], affine)[0])
    lesion = channels.pop() > 0
    raw_CIJK = np.stack(channels).astype(np.float32)
    brain = (raw_CIJK != 0).any(axis=0)
    box = Box.around(brain).slices
    raw_CIJK, brain, lesion = raw_CIJK[:, *box], brain[box], lesion[box]
    mean = raw_CIJK[:, brain].mean(axis=1)[:, None, None, None]
    std = raw_CIJK[:, brain].std(axis=1)[:, None, None, None]
    image_CIJK = (raw_CIJK - mean) / std * brain
    return Anatomy(folder.name, np.ascontiguousarray(np.moveaxis(image_CIJK, 0, 3)), brain, lesion)


def shape_path(folder: Path, name: str) -> Path:
    """Where a tumour's labels lie."""
    return folder / "shapes" / f"{name}.nii.gz"


def read_shape(path: Path) -> Labels:
    """A tumour's labels (I, J, K), cropped to the tumour."""
    scan = read_image(path, channels=1)
    labels = to_ras(scan.array[..., 0], scan.affine)[0].astype(np.uint8)
    return np.ascontiguousarray(labels[Box.around(labels > 0).slices])


def smooth_noise(shape: Sequence[int], scale_vox: float, rng: np.random.Generator) -> Floats:
    """A random field of mean 0 and std about 1 that changes over `scale_vox`."""
    coarse = [int(np.ceil(n / scale_vox)) + 3 for n in shape]
    noise = rng.standard_normal(coarse).astype(np.float32)
    start = rng.uniform(0, 1, 3)
    axes = [s + np.arange(n) / scale_vox for s, n in zip(start, shape, strict=True)]
    for axis, at in enumerate(axes):  # linear interpolation, one axis after the other
        below = np.floor(at).astype(int)
        share = (at - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        lower, upper = noise.take(below, axis), noise.take(below + 1, axis)
        noise = lower + share * (upper - lower)
    return noise * 1.8  # interpolation averages: it leaves (2/3) ** 1.5 of the variance


def synthesize(
    anatomy: Anatomy,
    shape: Labels,
    size_vox: Vox3,
    rng: np.random.Generator,
    style: Style,
    centre_vox: tuple[float, float, float] | None = None,
    with_tumour: bool = True,
) -> tuple[Floats, Labels, Mask]:
    """One synthetic patch or scan.

    Args:
        size_vox: of the result.
        centre_vox: where in the anatomy the result's centre lies; a random voxel of the brain if
            None.

    Returns:
        image (C, I, J, K) with the background exactly 0, labels (I, J, K), and where the truth is
        unknown (I, J, K).
    """
    if centre_vox is None:
        i, j, k = anatomy.places[rng.integers(len(anatomy.places))]
        centre_vox = (float(i), float(j), float(k))
    image, brain, unknown = _view(anatomy, size_vox, centre_vox, rng)
    image = _flatten(image, brain, rng)
    labels = np.zeros(size_vox, np.uint8)
    looks = _looks(rng, style)
    if with_tumour:
        labels = _lay(shape, size_vox, rng)
        labels = _restructure(labels, rng) * brain
        image, labels = _paint(image, labels, anatomy.white_C, looks, rng)
        image *= brain
    image = _standardize_again(image, anatomy.white_C, looks, rng)
    image = _rescan(image, brain, rng, style)
    return image, labels, unknown & (labels == 0)


def _view(
    anatomy: Anatomy,
    size_vox: Vox3,
    centre_vox: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[Floats, Mask, Mask]:
    """The anatomy around a point, turned and scaled a little, mirrored at random."""
    matrix = _rotation(rng, 0.25) @ np.diag(rng.uniform(0.87, 1.15, 3))
    matrix = matrix @ np.diag(rng.choice([-1.0, 1.0], 3))
    source = _points(matrix, size_vox, (np.array(size_vox) - 1) / 2, np.array(centre_vox))
    below, shape = np.floor(source).astype(np.int32), anatomy.brain.shape
    part = (source - below).astype(np.float32)
    image = np.zeros((*size_vox, len(CHANNELS)), np.float32)
    for corner in np.ndindex(2, 2, 2):  # linear interpolation, all channels at once
        weight = np.prod([p if c else 1 - p for c, p in zip(corner, part, strict=True)], axis=0)
        index, inside = _inside(
            [b + c for b, c in zip(below, corner, strict=True)], anatomy.brain.shape
        )
        image += anatomy.image_IJKC[index] * (weight * inside)[..., None]
    index, inside = _inside(np.rint(source).astype(np.int32), shape)
    brain = anatomy.brain[index] & inside
    return np.moveaxis(image, 3, 0) * brain, brain, anatomy.unknown[index] & brain


def _points(
    matrix: npt.NDArray[np.float64],
    size_vox: Vox3,
    from_vox: npt.NDArray[np.float64],
    to_vox: npt.NDArray[np.float64],
) -> Floats:
    """Where each voxel of a grid comes from (3, I, J, K): `from_vox` from `to_vox`, by a matrix."""
    axes = [
        np.multiply.outer(matrix[:, a], np.arange(n) - from_vox[a]).astype(np.float32)
        for a, n in enumerate(size_vox)
    ]
    i, j, k = axes[0][:, :, None, None], axes[1][:, None, :, None], axes[2][:, None, None, :]
    moved: Floats = i + j + k + to_vox.astype(np.float32)[:, None, None, None]
    return moved


def _inside(index: Any, shape: Sequence[int]) -> tuple[tuple[Any, ...], Mask]:
    """Indices clipped to a volume's shape, and where they needed no clipping."""
    inside = np.ones(index[0].shape, bool)
    for at, n in zip(index, shape, strict=True):
        inside &= (at >= 0) & (at < n)
    return tuple(np.clip(at, 0, n - 1) for at, n in zip(index, shape, strict=True)), inside


def _flatten(image: Floats, brain: Mask, rng: np.random.Generator) -> Floats:
    """Less contrast between grey and white matter, as in many scans and beside every mass."""
    for c, channel in enumerate(image):
        if rng.random() < 0.4:
            share = rng.uniform(0, 0.7)
            image[c] = (1 - share) * channel + share * ndimage.gaussian_filter(channel, 3.0)
    return image * brain


def _rotation(rng: np.random.Generator, most_rad: float) -> npt.NDArray[np.float64]:
    """Three turns, one about each axis."""
    turned = np.eye(3)
    for axis, angle in enumerate(rng.uniform(-most_rad, most_rad, 3)):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        turned = turned @ turn
    return turned


def _lay(shape: Labels, size_vox: Vox3, rng: np.random.Generator) -> Labels:
    """A shape, turned, scaled and warped, so that one of its voxels is near the centre."""
    label = rng.choice([1, 2, 3], p=[0.4, 0.3, 0.3])
    places = np.argwhere(shape == label)
    anchor = places[rng.integers(len(places))] if len(places) else np.array(shape.shape) / 2
    matrix = _rotation(rng, np.pi) @ np.diag(np.exp(rng.uniform(np.log(0.7), np.log(2.0), 3)))
    at = (np.array(size_vox) - 1) / 2 + rng.uniform(-0.3, 0.3, 3) * size_vox
    warp = np.stack([smooth_noise(size_vox, rng.uniform(8, 16), rng) for _ in range(3)])
    source = _points(matrix, size_vox, at, anchor) + np.float32(rng.uniform(0, 4)) * warp
    index, inside = _inside(np.rint(source).astype(np.int32), shape.shape)
    laid: Labels = shape[index] * inside
    return laid


def _restructure(labels: Labels, rng: np.random.Generator) -> Labels:
    """Kinds of tumour that few shapes have: rings, islands, without rim, without edema."""
    kinds = ("as it is", "ring", "islands", "no rim", "no edema")
    kind = rng.choice(kinds, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    labels, size = labels.copy(), labels.shape
    core = labels >= 2
    if kind == "ring" and core.any():
        depth = ndimage.distance_transform_edt(core)
        thickness = rng.uniform(1.2, 4.5) * (1 + 0.5 * smooth_noise(size, rng.uniform(5, 12), rng))
        gaps = smooth_noise(size, rng.uniform(6, 14), rng) > rng.uniform(0.5, 2.5)
        labels[core] = np.where((depth <= np.maximum(thickness, 1)) & ~gaps, 3, 2)[core]
    elif kind == "islands":
        necrotic = smooth_noise(size, rng.uniform(4, 10), rng) > rng.uniform(-0.5, 1.5)
        labels[core] = np.where(necrotic, 2, 3)[core]
    elif kind == "no rim":
        labels[core] = 2
    elif kind == "no edema":
        labels[labels == 1] = 0
    return labels


def _looks(rng: np.random.Generator, style: Style) -> dict[str, Floats]:
    """Each tumour part's intensity in each channel, relative to normal white matter."""
    looks = {
        name: np.array([style.draw(rng, *limits) for limits in limits_C], np.float32)
        for name, limits_C in _LOOKS.items()
    }
    t1gd = CHANNELS.index("T1gd")
    brightest = max(looks[name][t1gd] for name in ("edema", "solid", "necrosis"))
    looks["enhancing"][t1gd] = max(looks["enhancing"][t1gd], brightest + _LEAST_ENHANCEMENT)
    return looks


def _standardize_again(
    image: Floats, white_C: Floats, looks: Mapping[str, Floats], rng: np.random.Generator
) -> Floats:
    """Standardise by the whole brain, tumour included: a bright tumour darkens the rest.

    The network sees 19 voxels at a time; it knows the normal mostly by absolute values.
    """
    # mostly small; at most that of a slab around a large tumour
    share = np.float32(0.35 * rng.uniform() ** 2)
    parts = rng.dirichlet([4, 1, 1, 1.5]).astype(np.float32)  # edema, solid, necrosis, enhancing
    values_PC = np.stack([white_C + looks[name] for name in _LOOKS])
    mean_C = share * (parts @ values_PC)
    square_C = (1 - share) + share * (parts @ np.square(values_PC))
    std_C = np.sqrt(square_C - np.square(mean_C))
    again: Floats = (image - mean_C[:, None, None, None]) / std_C[:, None, None, None]
    return again


def _paint(
    image: Floats,
    labels: Labels,
    white_C: Floats,
    looks: Mapping[str, Floats],
    rng: np.random.Generator,
) -> tuple[Floats, Labels]:
    """Paint each part of the tumour into each channel; labels follow the visible result."""
    parts, labels = _parts(image, labels, white_C, rng)
    painted, size = image.copy(), labels.shape
    for name, share in parts.items():
        if not share.any():
            continue
        common = smooth_noise(size, rng.uniform(1.5, 5), rng)
        for c, channel in enumerate(image):
            texture = 0.7 * (common + smooth_noise(size, rng.uniform(1.2, 4), rng))
            anatomy = rng.uniform(0, 0.35) * (channel - white_C[c])  # shows through
            look = white_C[c] + looks[name][c] + rng.uniform(0.05, 0.45) * texture + anatomy
            painted[c] += share * (look - painted[c])
    return painted, labels


def _parts(
    image: Floats, labels: Labels, white_C: Floats, rng: np.random.Generator
) -> tuple[dict[str, Floats], Labels]:
    """How much of each part is in each voxel, 0 to 1; edema too thin to see loses its label."""
    flair, t1, _, t2 = image
    size = labels.shape
    labels = np.where((labels == 1) & (t2 > 1.8) & (flair < 0.2), 0, labels)  # no edema in CSF
    depth = ndimage.distance_transform_edt(labels > 0) if labels.any() else np.zeros(size)
    grade = np.clip(depth / rng.uniform(1, 4), 0, 1) ** rng.uniform(0.2, 0.7)
    whiteness = np.clip((t1 - white_C[CHANNELS.index("T1w")]) + 1.5, 0, 1)
    follow = rng.uniform(0, 0.8)
    edema = (labels == 1) * grade * (1 - follow + follow * whiteness)
    labels = np.where((labels == 1) & (edema < 0.35), 0, labels).astype(np.uint8)
    inside = smooth_noise(size, rng.uniform(4, 12), rng) + 1.5 * (depth > rng.uniform(2, 6))
    necrosis = (labels == 2) & (inside > rng.uniform(-1, 2))
    parts = {
        "edema": edema * rng.uniform(0.75, 1),
        "solid": (labels == 2) & ~necrosis,
        "necrosis": necrosis,
        "enhancing": labels == 3,
    }
    soft = rng.uniform(0.3, 0.9)
    shares = {name: part.astype(np.float32) for name, part in parts.items()}
    return {name: ndimage.gaussian_filter(share, soft) for name, share in shares.items()}, labels


def _rescan(image: Floats, brain: Mask, rng: np.random.Generator, style: Style) -> Floats:
    """The image of another scanner: blur, thick slices, shading, noise, contrast."""
    size = brain.shape
    shown = np.empty_like(image)
    thick = rng.integers(3)
    coil = rng.uniform(0, 0.15) * smooth_noise(size, 45, rng)  # darker far from the coil
    for c, channel in enumerate(image):
        values = channel
        if rng.random() < 0.5:
            sigma_vox = np.full(3, rng.uniform(0, 0.8))
            sigma_vox[thick] += rng.choice([0, 1], p=[0.4, 0.6]) * rng.uniform(0, 2)
            values = ndimage.gaussian_filter(values, sigma_vox)
        own = rng.uniform(0, 0.08) * smooth_noise(size, 45, rng)
        values = (values + _MEAN_STD) * (1 + coil + own) - _MEAN_STD
        if rng.random() < 0.6:
            gamma = np.exp(style.draw(rng, -0.45, 0.45))
            values = 8 * np.clip((values + 3) / 8, 0, 1.5) ** gamma - 3  # of -3 to 5 std
        if rng.random() < 0.5:
            values = values + rng.uniform(0, 0.2) * rng.standard_normal(size, np.float32)
        shown[c] = values * np.exp(rng.uniform(-0.25, 0.25)) + rng.uniform(-0.3, 0.3)
    return shown * brain
