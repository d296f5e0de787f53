"""Scans with their labels: a prediction against its truth, a case, a sheet of patches.

Images are (C, I, J, K) and labels (I, J, K), both RAS+; intensities may be raw or standardised.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.errors import DataError
from gliotrail.imaging.geometry import Box, Vox3, vox3
from gliotrail.report.colours import (
    AGREEMENT_ALPHA,
    ERROR_COLOURS,
    ERROR_GROUND,
    FAINT,
    FILL_ALPHA,
    colours_of,
    label_colours,
    spoken,
)
from gliotrail.report.panels import (
    CONVENTION,
    PLANES,
    Plane,
    Spacing,
    caption,
    cut,
    foreground_mask,
    grey_window,
    greys,
    mark_cuts,
    mark_sides,
    new_sheet,
    outlined,
    pixel_mm,
    show_fill,
    show_greys,
    show_outlines,
    shown_channels,
    size_mm,
    swatch,
)

_AGREEMENT, _WRONG_CLASS, _FALSE_POSITIVE, _FALSE_NEGATIVE = 1, 2, 3, 4


def pick_slices(labels_IJK: npt.NDArray[Any], n: int) -> tuple[int, ...]:
    """`n` axial slices, ascending: the largest one of each class, the rest spread over the tumour.

    The same labels give the same slices. With fewer slices than classes the last class goes first
    (of brain tumours the enhancing one); without any they spread over the volume.
    """
    n_slices = labels_IJK.shape[2]
    areas = np.stack(
        [
            (labels_IJK == c + 1).sum(axis=(0, 1))
            for c in range(max(1, int(labels_IJK.max(initial=0))))
        ]
    )
    largest = [int(area.argmax()) for area in areas[::-1] if area.any()]
    chosen = list(dict.fromkeys(largest))[:n]
    tumour = areas.sum(axis=0).cumsum()
    # the outer twentieths are a few voxels a slice: nothing to look at
    body = (tumour > 0.05 * tumour[-1]) & (tumour < 0.95 * tumour[-1])
    for pool in (np.flatnonzero(body), np.arange(n_slices)):
        free = [int(k) for k in pool if k not in chosen]
        while free and len(chosen) < n:
            taken = np.array([*chosen, pool[0] - 1, pool[-1] + 1])
            chosen.append(free.pop(int(np.argmax([abs(taken - k).min() for k in free]))))
    return tuple(sorted(chosen))


def centre_voxel(labels_IJK: npt.NDArray[Any] | None, image_CIJK: npt.NDArray[Any]) -> Vox3:
    """Where the tumour's largest sagittal, coronal and axial slice meet; else the foreground's."""
    labelled = labels_IJK is not None and labels_IJK.any()
    mask = np.asarray(labels_IJK) > 0 if labelled else foreground_mask(image_CIJK)
    areas = (mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3))
    return vox3([area.argmax() for area in areas])


def random_voxel(image_CIJK: npt.NDArray[Any], seed: int) -> Vox3:
    """A voxel of the foreground, the same for the same seed: a random slice in each plane."""
    inside = np.flatnonzero(foreground_mask(image_CIJK))
    at = inside[np.random.default_rng(seed).integers(inside.size)]
    return vox3(np.unravel_index(at, image_CIJK.shape[1:]))


def draw_prediction(
    image_CIJK: npt.NDArray[Any],
    labels_IJK: npt.NDArray[Any],
    predicted_IJK: npt.NDArray[Any],
    slices_k: Sequence[int],
    spacing_mm: Spacing,
    title: str,
    *,
    task: Task = BRATS,
    shown: Sequence[str] | None = None,
    first_k: int = 0,
) -> Figure:
    """Axial slices with the truth as outline and the prediction as fill, and where they differ.

    A column a slice; a row for each channel in `shown`, then one for agreement (right class), wrong
    class (tumour in both, of another class), false positives and false negatives of the whole
    tumour. The whole foreground is drawn, so that no false positive is left out.

    Args:
        first_k: the number of the first slice, where the arrays are a block of a scan.

    Raises:
        DataError: shapes, channels or slices don't fit.
    """
    channels, shown = task.channel_names, shown or shown_channels(task)
    check_fit(image_CIJK, channels, shown, labels_IJK, predicted_IJK)
    outside = [k for k in slices_k if not 0 <= k < image_CIJK.shape[3]]
    if outside or not slices_k:
        wanted = f"some of 0 to {image_CIJK.shape[3] - 1}"
        raise DataError("slices", where=title, wanted=wanted, got=outside or "none")
    foreground = foreground_mask(image_CIJK)
    box = framed(foreground | (labels_IJK > 0) | (predicted_IJK > 0), in_plane_only=True)
    pixel = pixel_mm(spacing_mm, "axial")
    wide_mm, high_mm = size_mm(box.size_vox, spacing_mm, "axial")
    figure, panels = new_sheet(
        widths_mm=[wide_mm] * len(slices_k),
        heights_mm=[high_mm] * (len(shown) + 1),
        title=title,
        row_names=[*shown, "agreement\nand errors"],
        column_names=[f"axial k = {k + first_k}" for k in slices_k],
        legends=prediction_legends(task),
        note=CONVENTION,
    )
    labels, predicted = labels_IJK[box.slices], predicted_IJK[box.slices]
    for row, name in enumerate([*shown, shown[0]]):
        image = image_CIJK[list(channels).index(name)]
        window = grey_window(image, foreground)
        image, inside = image[box.slices], foreground[box.slices]
        for axes, k in zip(panels[row], slices_k, strict=True):
            grey = greys(cut(image, "axial", k), cut(inside, "axial", k), window)
            draw = show_prediction if row < len(shown) else show_errors
            planes = cut(labels, "axial", k), cut(predicted, "axial", k)
            draw(axes, grey, *planes, pixel, task)
            mark_sides(axes, "axial")
    return figure


def show_prediction(
    axes: Axes,
    grey: Plane,
    labels: Plane,
    predicted: Plane,
    pixel: tuple[float, float],
    task: Task = BRATS,
) -> None:
    """A plane with the truth as outline and the prediction as fill."""
    show_greys(axes, grey, pixel)
    fills = {c + 1: (colour, FILL_ALPHA) for c, colour in enumerate(label_colours(task))}
    show_fill(axes, predicted, fills, pixel)
    show_outlines(axes, labels, pixel, task)


def show_errors(
    axes: Axes,
    grey: Plane,
    labels: Plane,
    predicted: Plane,
    pixel: tuple[float, float],
    task: Task = BRATS,
) -> None:
    """A dimmed plane with agreement and the kinds of error, whatever the task."""
    show_greys(axes, grey * ERROR_GROUND, pixel)
    paints = {
        code: (colour, AGREEMENT_ALPHA if code == _AGREEMENT else 1.0)
        for code, colour in enumerate(ERROR_COLOURS.values(), start=1)
    }
    show_fill(axes, error_codes(labels, predicted), paints, pixel)


def prediction_legends(task: Task = BRATS) -> list[list[tuple[Artist, str]]]:
    """The legends of `show_prediction` and `show_errors`."""
    colours = colours_of(task)
    return [
        [
            *((outlined(colours[c], FILL_ALPHA), spoken(c)) for c in task.class_names),
            (outlined(FAINT), "outline: truth"),
            (swatch(FAINT, FILL_ALPHA + 0.2), "fill: prediction"),
        ],
        [
            (swatch(colour, AGREEMENT_ALPHA if name == "agreement" else 1), spoken(name))
            for name, colour in ERROR_COLOURS.items()
        ],
    ]


def draw_case(
    image_CIJK: npt.NDArray[Any],
    labels_IJK: npt.NDArray[Any] | None,
    spacing_mm: Spacing,
    title: str,
    *,
    at_vox: Vox3 | None = None,
    task: Task = BRATS,
    first_vox: Vox3 = (0, 0, 0),
) -> Figure:
    """Three planes of every channel through one voxel, the labels outlined.

    Args:
        at_vox: where the planes meet; without it `centre_voxel` (see also `random_voxel`).
        first_vox: the scan's voxel at 0, 0, 0, where the arrays are a box of a scan.

    Raises:
        DataError: shapes, channels or the voxel don't fit.
    """
    channels = task.channel_names
    check_fit(image_CIJK, channels, (), labels_IJK)
    shape = image_CIJK.shape[1:]
    at = at_vox or centre_voxel(labels_IJK, image_CIJK)
    if not all(0 <= index < size for index, size in zip(at, shape, strict=True)):
        ends = zip(first_vox, shape, strict=True)
        wanted = ", ".join(f"{first} to {first + size - 1}" for first, size in ends)
        got = tuple(index + first for index, first in zip(at, first_vox, strict=True))
        raise DataError("voxel", where=title, wanted=wanted, got=got)
    foreground = foreground_mask(image_CIJK)
    seen = foreground.copy() if labels_IJK is None else foreground | (labels_IJK > 0)
    seen[at] = True
    box = framed(seen)
    sizes_mm = {plane: size_mm(box.size_vox, spacing_mm, plane) for plane in PLANES}
    figure, panels = new_sheet(
        widths_mm=[max(width for width, _ in sizes_mm.values())] * len(channels),
        heights_mm=[height for _, height in sizes_mm.values()],
        title=title,
        row_names=[
            f"{plane}\n{'ijk'[axis]} = {at[axis] + first_vox[axis]}"
            for plane, axis in PLANES.items()
        ],
        column_names=channels,
        legends=[class_legend(task)] if labels_IJK is not None else [[]],
        note=CONVENTION + "; sagittal: front (A) on the left",
    )
    for column, image in enumerate(image_CIJK):
        window = grey_window(image, foreground)
        for row, (plane, axis) in enumerate(PLANES.items()):
            axes, pixel = panels[row][column], pixel_mm(spacing_mm, plane)
            index = at[axis] - box.start_vox[axis]
            inside = cut(foreground[box.slices], plane, index)
            show_greys(axes, greys(cut(image[box.slices], plane, index), inside, window), pixel)
            if labels_IJK is not None:
                show_outlines(axes, cut(labels_IJK[box.slices], plane, index), pixel, task)
            right, down = (
                (stop - at[a] - 0.5) * spacing_mm[a]
                for a, stop in enumerate(box.stop_vox)
                if a != axis
            )
            mark_cuts(axes, right, down)
            mark_sides(axes, plane)
    return figure


def draw_patches(
    patches: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any], str]],
    spacing_mm: Spacing,
    title: str,
    *,
    task: Task = BRATS,
    columns: int = 6,
) -> Figure:
    """The middle axial slice of patches of one size, labels outlined, each in its own greys.

    Args:
        patches: image (C, I, J, K), labels (I, J, K) and a short caption each.

    Raises:
        DataError: no patches, or shapes or channels that don't fit.
    """
    if not patches:
        raise DataError("patches", where=title, wanted="at least 1", got=0)
    channels, shown = task.channel_names, shown_channels(task)[0]
    for image_CIJK, labels_IJK, _ in patches:
        check_fit(image_CIJK, channels, (shown,), labels_IJK, patches[0][1])
    n_rows = -(-len(patches) // columns)
    n_columns = min(columns, len(patches))
    shape = patches[0][1].shape
    wide_mm, high_mm = size_mm(shape, spacing_mm, "axial")
    figure, panels = new_sheet(
        widths_mm=[wide_mm] * n_columns,
        heights_mm=[high_mm] * n_rows,
        title=title,
        row_names=[shown, *[""] * (n_rows - 1)],
        column_names=[""] * n_columns,
        legends=[class_legend(task)],
        note=f"{CONVENTION}; middle axial slice, k = {shape[2] // 2} of the patch",
    )
    pixel = pixel_mm(spacing_mm, "axial")
    for axes, (image_CIJK, labels_IJK, name) in zip(chain(*panels), patches, strict=False):
        image, foreground = image_CIJK[list(channels).index(shown)], foreground_mask(image_CIJK)
        middle = shape[2] // 2
        window = grey_window(image, foreground)
        grey = greys(cut(image, "axial", middle), cut(foreground, "axial", middle), window)
        show_greys(axes, grey, pixel)
        show_outlines(axes, cut(labels_IJK, "axial", middle), pixel, task)
        mark_sides(axes, "axial")
        caption(axes, name)
    return figure


def class_legend(task: Task = BRATS) -> list[tuple[Artist, str]]:
    """The legend of the outlines' colours."""
    colours = colours_of(task)
    return [(outlined(colours[name]), spoken(name)) for name in task.class_names]


def error_codes(labels: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """0 where both are background, else the place in ERROR_COLOURS plus 1."""
    codes = np.zeros(labels.shape, np.uint8)
    codes[(labels > 0) & (predicted > 0)] = _WRONG_CLASS
    codes[(labels > 0) & (labels == predicted)] = _AGREEMENT
    codes[(labels == 0) & (predicted > 0)] = _FALSE_POSITIVE
    codes[(labels > 0) & (predicted == 0)] = _FALSE_NEGATIVE
    return codes


def framed(mask_IJK: npt.NDArray[np.bool_], in_plane_only: bool = False) -> Box:
    """The mask's box with a small margin, within the array."""
    whole = Box((0, 0, 0), vox3(mask_IJK.shape))
    box = Box.around(mask_IJK).grown(3).meet(whole)
    if in_plane_only:
        box = Box((*box.start_vox[:2], 0), (*box.stop_vox[:2], whole.stop_vox[2]))
    return box


def check_fit(
    image_CIJK: npt.NDArray[Any],
    channels: Sequence[str],
    shown: Sequence[str],
    *labels: npt.NDArray[Any] | None,
) -> None:
    """Refuse an image that is not (C, I, J, K) with these channels, or labels of another shape.

    Raises:
        DataError: naming both.
    """
    if image_CIJK.ndim != 4 or len(channels) != len(image_CIJK):
        raise DataError("image shape", wanted=f"({len(channels)}, I, J, K)", got=image_CIJK.shape)
    unknown = [name for name in shown if name not in channels]
    if unknown:
        raise DataError(
            "channels shown", wanted=f"some of {', '.join(channels)}", got=", ".join(unknown)
        )
    for volume in labels:
        if volume is not None and volume.shape != image_CIJK.shape[1:]:
            raise DataError("label shape", wanted=image_CIJK.shape[1:], got=volume.shape)
