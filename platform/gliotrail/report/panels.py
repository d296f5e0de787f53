"""One plane of a scan as a panel, and panels laid out as a sheet at one common scale.

Radiological view: axial and coronal planes are seen from the patient's feet and front, so the
patient's left is on the viewer's right; sagittal planes have the front on the left. Arrays are RAS+
(i left to right, j posterior to anterior, k inferior to superior).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from gliotrail.dataset.brats import BRATS, SHOWN
from gliotrail.dataset.task import Task
from gliotrail.report.colours import FAINT, FOREGROUND, label_colours, rgb
from gliotrail.report.figures import add_legend, add_text, add_title, new_figure

Spacing = tuple[float, float, float]
Window = tuple[float, float]
Plane = npt.NDArray[Any]
"""Pixels (rows, columns) as they are drawn: the first row is on top."""

PLANES: Final[Mapping[str, int]] = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Each plane's name and the array axis that it is cut across."""
CONVENTION: Final = (
    "Radiological view: the patient's right (R) is on the left, the left (L) on the right"
)
_SIDES = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
_BARS_MM = (1, 2, 5, 10, 20, 50)

_LEAST_BACKGROUND = 4
"""Voxels of a slice. With foreground in all four corners, only the corners equal one."""
_RIM = 0.8
"""Outlines run within their class, 0.3 voxels from its edge: two that touch stay apart."""

_MARGIN_IN = 0.15
_NAMES_IN = 0.85
_GAP_IN = 0.06
_LINE_IN = 0.24
_LEAST_WIDTH_IN = 7.2


def cut(volume_IJK: npt.NDArray[Any], plane: str, index: int) -> Plane:
    """One plane as it is drawn: anterior or superior up, right or front on the left."""
    slices: npt.NDArray[Any] = np.moveaxis(volume_IJK, PLANES[plane], 0)
    return np.asarray(slices[index])[::-1, ::-1].T


def pixel_mm(spacing_mm: Spacing, plane: str) -> tuple[float, float]:
    """Width and height of a plane's pixel."""
    width, height = (mm for axis, mm in enumerate(spacing_mm) if axis != PLANES[plane])
    return width, height


def size_mm(shape: Sequence[int], spacing_mm: Spacing, plane: str) -> tuple[float, float]:
    """Width and height of a plane of a volume (I, J, K)."""
    width, height = (n for axis, n in enumerate(shape) if axis != PLANES[plane])
    width_mm, height_mm = pixel_mm(spacing_mm, plane)
    return width * width_mm, height * height_mm


def foreground_mask(image_CIJK: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where the foreground is, in raw or standardised intensities alike: (I, J, K).

    Voxels are background if they equal a corner of their axial slice in every channel, unless next
    to none does. (Background is 0 in raw scans; scans standardised by slice have another value in
    each slice.)
    """
    corners = {
        image_CIJK[:, i, j, :].tobytes(): image_CIJK[:, i, j, :]
        for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1))
    }
    background = np.zeros(image_CIJK.shape[1:], bool)
    for corner_CK in corners.values():
        same = image_CIJK[0] == corner_CK[0]
        for channel, corner in zip(image_CIJK[1:], corner_CK[1:], strict=True):
            same &= channel == corner
        background |= same & (same.sum(axis=(0, 1)) > _LEAST_BACKGROUND)
    return ~background if not background.all() else ~np.zeros_like(background)


def grey_window(image_IJK: npt.NDArray[Any], foreground: npt.NDArray[np.bool_]) -> Window:
    """The intensities drawn black and white: percentiles 1 and 99.7 over the foreground."""
    low, high = np.percentile(image_IJK[foreground], (1, 99.7))
    return float(low), float(high) if high > low else float(low) + 1


def greys(plane: Plane, foreground: Plane, window: Window) -> Plane:
    """Intensities as greys from 0 to 1; background is black."""
    low, high = window
    grey = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1)
    return np.where(foreground, grey, 0)


def show_greys(axes: Axes, grey: Plane, pixel_size_mm: tuple[float, float]) -> None:
    """Draw greys; one unit of the axes is one mm, the origin is the upper left corner."""
    axes.imshow(
        grey, cmap="gray", vmin=0, vmax=1, interpolation="bilinear",
        extent=_extent(grey, pixel_size_mm),
    )  # fmt: skip
    axes.set_autoscale_on(False)


def show_fill(
    axes: Axes,
    codes: Plane,
    paints: Mapping[int, tuple[str, float]],
    pixel_size_mm: tuple[float, float],
) -> None:
    """Fill voxels by their code; `paints` gives each code's colour and how opaque it is."""
    rgba = np.zeros((*codes.shape, 4))
    for code, (colour, alpha) in paints.items():
        rgba[codes == code] = (*rgb(colour), alpha)
    axes.imshow(rgba, interpolation="nearest", extent=_extent(codes, pixel_size_mm))


def shown_channels(task: Task) -> tuple[str, ...]:
    """The two channels that pictures show: FLAIR and T1gd of brain tumours, else the first."""
    usual = tuple(name for name in SHOWN if name in task.channel_names)
    return usual or task.channel_names[:2]


def show_outlines(
    axes: Axes,
    labels: Plane,
    pixel_size_mm: tuple[float, float],
    task: Task = BRATS,
    width_pt: float = 1.1,
) -> None:
    """Outline every class in its colour; the outline is open at the panel's edge."""
    width_mm, height_mm = pixel_size_mm
    rows_mm = (np.arange(labels.shape[0] + 2) - 0.5) * height_mm
    columns_mm = (np.arange(labels.shape[1] + 2) - 0.5) * width_mm
    padded = np.pad(labels, 1, mode="edge")
    masks = [(colour, padded == label) for label, colour in enumerate(label_colours(task), start=1)]
    masks = [(colour, mask) for colour, mask in masks if mask.any() and not mask.all()]
    # contourpy alone: the axes' own `contour` takes most of a picture's time
    outlines = []
    for colour, mask in masks:
        lines = contour_generator(columns_mm, rows_mm, mask * 1.0).lines(_RIM)
        path = Path.make_compound_path(*(Path(np.asarray(line)) for line in lines))
        outlines.append((colour, path))
    # all dark rims first, so that none hides the line of a class beside it
    for rim in (True, False):
        for colour, outline in outlines:
            axes.add_artist(  # add_patch would look at each point for the axes' limits
                PathPatch(
                    outline, fill=False, alpha=0.6 if rim else 1,
                    edgecolor="black" if rim else colour, linewidth=width_pt + 1.2 * rim,
                )
            )  # fmt: skip


def mark_sides(axes: Axes, plane: str) -> None:
    """Letters for the patient's right and left, or front and back."""
    for letter, x, side in zip(_SIDES[plane], (0.02, 0.98), ("left", "right"), strict=True):
        axes.text(
            x, 0.98, letter, transform=axes.transAxes, ha=side, va="top", fontsize=8,
            weight="bold", color=FOREGROUND,
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip


def mark_cuts(axes: Axes, x_mm: float, y_mm: float) -> None:
    """Faint lines where the other two planes cut this one."""
    axes.axvline(x_mm, color=FOREGROUND, linewidth=0.5, alpha=0.35)
    axes.axhline(y_mm, color=FOREGROUND, linewidth=0.5, alpha=0.35)


def caption(axes: Axes, text: str) -> None:
    """Literal text at the foot of a panel."""
    axes.text(
        0.03, 0.03, text, transform=axes.transAxes, va="bottom", fontsize=7, color=FOREGROUND,
        parse_math=False, path_effects=[withStroke(linewidth=2, foreground="black")],
    )  # fmt: skip


def new_sheet(
    *,
    widths_mm: Sequence[float],
    heights_mm: Sequence[float],
    title: str,
    row_names: Sequence[str],
    column_names: Sequence[str],
    legends: Sequence[Sequence[tuple[Artist, str]]],
    note: str,
    most_high_in: float = 7.5,
    names_in: float = _NAMES_IN,
) -> tuple[Figure, list[list[Axes]]]:
    """Lay out columns of `widths_mm` and rows of `heights_mm` at one scale, with one scale bar.

    Below the panels are the scale bar and one line for each legend, then the note.

    Returns:
        the figure and its panels, row by row.
    """
    n_rows, n_columns = len(heights_mm), len(widths_mm)
    gaps_in = (n_columns - 1) * _GAP_IN
    scale = min(
        (10.2 - names_in - 2 * _MARGIN_IN - gaps_in) / sum(widths_mm),
        2.5 / max(widths_mm),
        most_high_in / sum(heights_mm),
    )
    width_in = names_in + 2 * _MARGIN_IN + gaps_in + sum(widths_mm) * scale
    top_in = 0.75 if any(column_names) else 0.5
    foot_in = _LINE_IN * (len(legends) + 1) + 0.25
    panels_in = sum(heights_mm) * scale + (n_rows - 1) * _GAP_IN
    height_in = top_in + panels_in + foot_in
    figure = new_figure(max(width_in, _LEAST_WIDTH_IN), height_in)
    width_in = figure.get_size_inches()[0]

    add_title(figure, _MARGIN_IN, height_in - 0.26, title)
    panels, y_in = [], height_in - top_in
    for row, (name, high_mm) in enumerate(zip(row_names, heights_mm, strict=True)):
        y_in -= high_mm * scale
        add_text(figure, _MARGIN_IN, y_in + high_mm * scale / 2, name)
        x_in, line = names_in + _MARGIN_IN, []
        for column, wide_mm in zip(column_names, widths_mm, strict=True):
            if row == 0:
                middle_in = x_in + wide_mm * scale / 2
                add_text(figure, middle_in, height_in - 0.62, column, ha="center")
            line.append(_panel(figure, (x_in, y_in, wide_mm * scale, high_mm * scale)))
            x_in += wide_mm * scale + _GAP_IN
        panels.append(line)
        y_in -= _GAP_IN

    y_in = foot_in - 0.28
    left_in = names_in + _MARGIN_IN
    bar_mm = scale_bar_mm(min(max(widths_mm) / 2, (names_in - 0.1) / scale))
    _scale_bar(figure, _MARGIN_IN, y_in, bar_mm, scale)
    for entries in legends:
        add_legend(
            figure, entries, loc="center left", ncol=len(entries), columnspacing=1.1,
            handletextpad=0.5, handlelength=1.6, borderaxespad=0,
            bbox_to_anchor=(left_in / width_in, y_in / height_in),
        )  # fmt: skip
        y_in -= _LINE_IN
    add_text(figure, left_in, y_in, note, color=FAINT, fontsize=7.5)
    return figure, panels


def scale_bar_mm(most_mm: float) -> int:
    """The longest round length of at most `most_mm`, but at least 1 mm."""
    return max([mm for mm in _BARS_MM if mm <= most_mm] or [_BARS_MM[0]])


def swatch(colour: str, alpha: float = 1) -> Patch:
    """A filled box for a legend."""
    return Patch(facecolor=(*rgb(colour), alpha), edgecolor="none")


def outlined(colour: str, alpha: float = 0) -> Patch:
    """An outlined box for a legend, with a translucent fill."""
    return Patch(facecolor=(*rgb(colour), alpha), edgecolor=colour, linewidth=1.3)


def _extent(plane: Plane, pixel_size_mm: tuple[float, float]) -> tuple[float, float, float, float]:
    rows, columns = plane.shape[:2]
    width_mm, height_mm = pixel_size_mm
    return 0, columns * width_mm, rows * height_mm, 0


def _panel(figure: Figure, rectangle_in: tuple[float, float, float, float]) -> Axes:
    width_in, height_in = figure.get_size_inches()
    x, y, w, h = rectangle_in
    axes = figure.add_axes((x / width_in, y / height_in, w / width_in, h / height_in))
    axes.set_facecolor("black")
    axes.set_axis_off()
    return axes


def _scale_bar(figure: Figure, x_in: float, y_in: float, bar_mm: float, scale: float) -> None:
    width_in, height_in = figure.get_size_inches()
    bar = Rectangle(
        (x_in / width_in, (y_in - 0.06) / height_in), bar_mm * scale / width_in, 0.035 / height_in,
        transform=figure.transFigure, facecolor=FOREGROUND, edgecolor="none",
    )  # fmt: skip
    figure.add_artist(bar)
    add_text(figure, x_in, y_in + 0.06, f"{bar_mm:g} mm", fontsize=8)
