"""An animated GIF through a scan's axial slices, from below to above, labels outlined."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.files import replacing
from gliotrail.report.colours import label_colours, rgb, spoken
from gliotrail.report.overlays import check_fit, framed
from gliotrail.report.panels import (
    Spacing,
    cut,
    foreground_mask,
    grey_window,
    greys,
    scale_bar_mm,
    shown_channels,
)

_N_GREYS = 40
_WHITE = _N_GREYS - 1
_BAND_PX = 22
_HEAD_PX, _FOOT_PX = 2 * _BAND_PX, 2 * _BAND_PX
_LEAST_WIDTH_PX = 330


def write_gif(
    image_CIJK: npt.NDArray[Any],
    labels_IJK: npt.NDArray[Any] | None,
    path: Path,
    spacing_mm: Spacing,
    title: str,
    *,
    task: Task = BRATS,
    shown: Sequence[str] | None = None,
    height_px: int = 240,
    most_frames: int = 80,
    frame_ms: int = 120,
    first_k: int = 0,
) -> None:
    """Write the animation, with every 2nd or 3rd slice of many. A whole scan takes about 2 MB.

    Radiological view, as in every picture: the patient's left is on the viewer's right.

    Args:
        first_k: the number of the first slice, where the arrays are a box of a scan.

    Raises:
        DataError: shapes or channels don't fit.
    """
    channels, shown = task.channel_names, shown or shown_channels(task)
    check_fit(image_CIJK, channels, shown, labels_IJK)
    foreground = foreground_mask(image_CIJK)
    box = framed(foreground if labels_IJK is None else foreground | (labels_IJK > 0))
    images = [image_CIJK[list(channels).index(name)] for name in shown]
    windows = [grey_window(image, foreground) for image in images]
    inside = foreground[box.slices]
    labels = labels_IJK[box.slices] if labels_IJK is not None else np.zeros(inside.shape, np.uint8)
    n_slices = inside.shape[2]
    px_per_mm = height_px / (inside.shape[1] * spacing_mm[1])
    size_px = (max(1, round(inside.shape[0] * spacing_mm[0] * px_per_mm)), height_px)

    frames = []
    for k in range(0, n_slices, -(-n_slices // most_frames)):
        panels = []
        for image, window in zip(images, windows, strict=True):
            grey = greys(cut(image[box.slices], "axial", k), cut(inside, "axial", k), window)
            large = Image.fromarray(np.uint8(grey * 255)).resize(size_px, Image.Resampling.BILINEAR)
            panels.append(np.asarray(large))
        outline = _outlines(cut(labels, "axial", k), size_px)
        heading = f"{title}   axial k = {k + box.start_vox[2] + first_k}"
        classes = task if labels_IJK is not None else None
        frames.append(_frame(panels, outline, heading, shown, px_per_mm, classes))
    with replacing(path) as partial:
        timing: dict[str, Any] = {"duration": frame_ms, "loop": 0}
        frames[0].save(partial, "GIF", save_all=True, append_images=frames[1:], **timing)


def _outlines(labels: npt.NDArray[Any], size_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Labels of the pixels at the rim of each class, else 0, at the size they are drawn."""
    small = Image.fromarray(labels.astype(np.uint8))
    large = np.asarray(small.resize(size_px, Image.Resampling.NEAREST))
    padded = np.pad(large, 1, mode="edge")
    middle = np.ones(large.shape, bool)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        moved = padded[rows : rows + large.shape[0], columns : columns + large.shape[1]]
        middle &= moved == large
    return np.where(middle, 0, large)


def _frame(
    panels: Sequence[npt.NDArray[Any]],
    outline: npt.NDArray[np.uint8],
    heading: str,
    names: Sequence[str],
    px_per_mm: float,
    legend: Task | None,
) -> Image.Image:
    """Panels side by side between two bands of text, as palette indices."""
    body = np.hstack(panels)
    high, wide = body.shape
    panel_px = wide // len(panels)
    canvas = np.zeros((_HEAD_PX + high + _FOOT_PX, max(wide, _LEAST_WIDTH_PX)), np.uint8)
    view = slice(_HEAD_PX, _HEAD_PX + high), slice(0, wide)
    canvas[view] = body
    drawing = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(drawing), ImageFont.load_default(12)
    pen.text((6, 4), heading, fill=255, font=font)
    for n, name in enumerate(names):
        left, right, y = n * panel_px, (n + 1) * panel_px, _BAND_PX + 3
        pen.text((left + 6, y), "R", fill=255, font=font)
        pen.text((right - 6, y), "L", fill=255, font=font, anchor="ra")
        pen.text(((left + right) // 2, y), name, fill=255, font=font, anchor="ma")
    foot = _HEAD_PX + high + 4
    bar_mm = scale_bar_mm(panel_px / px_per_mm / 2)
    bar_px = round(bar_mm * px_per_mm)
    pen.rectangle((6, foot + 6, 5 + bar_px, foot + 8), fill=255)
    pen.text((12 + bar_px, foot), f"{bar_mm:g} mm", fill=255, font=font)
    left, foot, swatches = 6, foot + _BAND_PX, []
    for label, name in enumerate(legend.class_names if legend else (), start=1):
        swatches.append((label, left))
        pen.text((left + 14, foot), spoken(name), fill=255, font=font)
        left += 28 + round(font.getlength(spoken(name)))
    indices = np.round(np.asarray(drawing) * (_WHITE / 255)).astype(np.uint8)
    rim = np.hstack([outline] * len(panels))
    indices[view][rim > 0] = _WHITE + rim[rim > 0]
    for label, left in swatches:
        indices[foot + 3 : foot + 12, left : left + 10] = _WHITE + label
    frame = Image.fromarray(indices)
    ramp = np.repeat(np.linspace(0, 255, _N_GREYS).round().astype(int), 3).tolist()
    colours = label_colours(legend) if legend else ()
    frame.putpalette(ramp + [round(255 * v) for colour in colours for v in rgb(colour)])
    return frame
