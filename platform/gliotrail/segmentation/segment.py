"""Segment a new patient's scan, of any orientation and spacing, on its own grid.

The scan is turned to RAS+, resampled to the networks' spacing and predicted by each of them. The
mean probabilities are resampled back, and then turned into labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np

from gliotrail.errors import DataError
from gliotrail.imaging.channels import check_informative
from gliotrail.imaging.foreground import air_values
from gliotrail.imaging.geometry import Box, by_mm, from_ras, same_spacing, spacing_mm, vox3
from gliotrail.imaging.header import by, check_channels
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.nifti import Scan, in_ras
from gliotrail.imaging.prepared import Floats, PreparedCase, case_of_array
from gliotrail.imaging.resample import resample_scan, to_scan_grid
from gliotrail.progress import progress
from gliotrail.segmentation.inference import predict_box, to_labels
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.postprocess import postprocessed
from gliotrail.segmentation.weights import Description

LARGEST_SIDE_MM: Final = 640.0
"""A scan that is longer is no head, or its spacing is wrong: refused before memory is taken."""
_SAME_MM: Final = 1e-3
_MIRRORS: Final = tuple(axes for n in range(4) for axes in combinations(range(3), n))

Trained = tuple[Network, Description]
"""What `weights.load` gives."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labels (I, J, K) and probabilities (I, J, K, classes), in the scan file's own axes."""

    labels: Labels
    probabilities: Floats


def segment(
    scan: Scan,
    networks: Sequence[Trained],
    threshold: float = 0.5,
    tta: bool = False,
    allow_missing: bool = False,
) -> Segmentation:
    """Segment a scan (I, J, K, C), channels in the order of the networks', raw values.

    Args:
        scan: as `read_image` or `read_channels` give it.
        networks: their probabilities are averaged.
        threshold: of the probability, above which a voxel is tumour.
        tta: average over the scan's eight mirror images too. A mirrored scan then gives the
            mirrored mask exactly, at eight times the work.
        allow_missing: accept channels that are empty, constant or the same.

    Raises:
        DataError: a scan of air alone, values that are not finite, a side that is too long, or
            networks that were trained at different spacings or on different channels and classes.
    """
    _check_alike([description for _, description in networks])
    task, intensities = networks[0][1].task, networks[0][1].intensities
    check_channels(scan.header, len(task.channels))
    if not allow_missing:
        do = "--allow-missing takes it as it is"
        check_informative(scan.array, task.channel_names, scan.header.path, do)
    trained_mm, heads = networks[0][1].spacing_mm, networks[0][0].heads
    ras = in_ras(scan)
    image_CIJK = np.moveaxis(ras.array, 3, 0)
    own_mm = spacing_mm(ras.affine)
    shape_vox = vox3(image_CIJK.shape[1:])
    resampled = max(abs(a - b) for a, b in zip(own_mm, trained_mm, strict=True)) > _SAME_MM
    air_C = None
    if resampled:
        longest_mm = max(n * length for n, length in zip(shape_vox, own_mm, strict=True))
        if longest_mm > LARGEST_SIDE_MM:
            got = f"{by(shape_vox)} voxels of {by_mm(own_mm)}"
            wanted = f"sides of up to {LARGEST_SIDE_MM:g} mm"
            raise DataError("size", where=scan.header.path, wanted=wanted, got=got)
        air_C = air_values(image_CIJK)
        without_air = [c - air for c, air in zip(image_CIJK, air_C, strict=True)]
        image_CIJK = resample_scan(without_air, own_mm, trained_mm)
    name = str(scan.header.path)
    case = case_of_array(image_CIJK, np.eye(4), name, task.channels, intensities, air_C)
    probabilities_CIJK = _predict(case, networks, tta)
    if resampled:
        probabilities_CIJK = to_scan_grid(probabilities_CIJK, trained_mm, shape_vox, own_mm)
    labels_IJK = to_labels(probabilities_CIJK, threshold, heads)
    if len(networks) == 1:  # rules were found for one network, not for a mean
        labels_IJK = postprocessed(labels_IJK, networks[0][1].postprocess, task, own_mm)
    return Segmentation(
        from_ras(labels_IJK, scan.affine),
        from_ras(np.moveaxis(probabilities_CIJK, 0, 3), scan.affine),
    )


def _check_alike(descriptions: Sequence[Description]) -> None:
    """Refuse networks of different channels, classes or spacings."""
    first = descriptions[0]
    for other in descriptions[1:]:
        if not same_spacing(other.spacing_mm, first.spacing_mm):
            got = by_mm(other.spacing_mm)
            raise DataError("spacing of the networks", wanted=by_mm(first.spacing_mm), got=got)
        for what in ("channels", "classes"):
            wanted, got = (", ".join(x.name for x in getattr(d.task, what)) for d in (first, other))
            if wanted != got:
                raise DataError(f"{what} of the networks", wanted=wanted, got=got)


def _predict(case: PreparedCase, networks: Sequence[Trained], tta: bool) -> Floats:
    """Mean probabilities (classes, I, J, K) on the case's RAS+ grid."""
    mirrors = _MIRRORS if tta else _MIRRORS[:1]
    # float64: the sum of a few float32 is then exact, whatever the order of the mirror images
    total_CIJK = np.zeros((networks[0][0].n_outputs, *case.box.size_vox))
    passes = len(networks) * len(mirrors)
    with progress(passes, "segment", "passes") as advance:
        for model, description in networks:
            for axes in mirrors:
                view = _mirrored(case, axes)
                seen_CIJK = predict_box(model, view, view.box, description.standardize)
                total_CIJK += np.flip(seen_CIJK, tuple(axis + 1 for axis in axes))
                advance(1)
    whole_CIJK = np.zeros((len(total_CIJK), *case.ras_shape_vox), np.float32)
    whole_CIJK[:, *case.box.slices] = total_CIJK / passes
    return whole_CIJK


def _mirrored(case: PreparedCase, axes: Sequence[int]) -> PreparedCase:
    """The mirror image along some of i, j, k, with the same statistics and affine."""
    starts, stops = list(case.box.start_vox), list(case.box.stop_vox)
    for axis in axes:
        n = case.ras_shape_vox[axis]
        starts[axis], stops[axis] = n - stops[axis], n - starts[axis]
    slices = -1 if 2 in axes else 1
    return replace(
        case,
        box=Box(vox3(starts), vox3(stops)),
        held_CIJK=np.flip(case.image_CIJK, tuple(axis + 1 for axis in axes)),
        slice_mean_CK=case.slice_mean_CK[:, ::slices],
        slice_std_CK=case.slice_std_CK[:, ::slices],
    )
