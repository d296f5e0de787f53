"""The look of figures, and writing them: no pyplot, no global state, the same bytes every time.

Text is drawn literally: a case may be named `a_b`, `$1` or `<x>`.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from PIL import Image

from gliotrail.files import replacing
from gliotrail.report.colours import BACKGROUND, FAINT, FOREGROUND

DPI = 110
_N_GREYS = 64
_LEAST_PT = 6.0


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty dark figure."""
    return Figure(figsize=(width_in, height_in), dpi=DPI, facecolor=BACKGROUND)


def add_text(figure: Figure, x_in: float, y_in: float, text: str, **style: Any) -> Text:
    """Literal text at a place given in inches from the lower left corner."""
    width_in, height_in = figure.get_size_inches()
    look = {"color": FOREGROUND, "fontsize": 9, "va": "center", "parse_math": False, **style}
    return figure.text(x_in / width_in, y_in / height_in, text, **look)


def add_title(figure: Figure, x_in: float, y_in: float, title: str) -> None:
    """The figure's title, cut with an ellipsis where it would not fit."""
    text = add_text(figure, x_in, y_in, title, fontsize=12, weight="bold")
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    room_px = figure.bbox.width - 2 * x_in * figure.dpi
    kept = title
    while kept and (width_px := text.get_window_extent(renderer).width) > room_px:
        kept = kept[: min(len(kept) - 1, int(len(kept) * room_px / width_px))]
        text.set_text(f"{kept}…")


def add_legend(
    owner: Figure | Axes, entries: Sequence[tuple[Artist, str]], **style: Any
) -> Legend | None:
    """A frameless legend whose names are drawn literally; none without entries."""
    if not entries:
        return None
    handles, names = zip(*entries, strict=True)
    look = {"frameon": False, "labelcolor": FOREGROUND, "fontsize": 8.5, "borderpad": 0, **style}
    legend = owner.legend(list(handles), list(names), **look)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return legend


def dark_axes(axes: Axes) -> None:
    """Axes for curves on the dark ground. Ticks are plain numbers."""
    axes.set_facecolor(BACKGROUND)
    axes.grid(visible=True, color=FAINT, alpha=0.2, linewidth=0.6)
    axes.tick_params(which="both", colors=FAINT, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(FAINT)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)


def fit_names(axes: Axes, gap_px: float = 4) -> None:
    """Make the names of groups at 0, 1, .. smaller, or turn them, where they would touch."""
    names, figure = axes.get_xticklabels(), axes.get_figure(root=True)
    if not names or figure is None:
        return
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    widest_px = max(name.get_window_extent(renderer).width for name in names)
    room_px = axes.bbox.width / float(np.ptp(axes.get_xlim())) - gap_px
    if widest_px <= room_px:
        return
    fitting_pt = float(names[0].get_fontsize()) * room_px / widest_px
    for name in names:
        name.set_fontsize(max(_LEAST_PT, fitting_pt))
        name.set_rotation(0 if fitting_pt >= _LEAST_PT else 90)


def figure_array(figure: Figure) -> npt.NDArray[np.uint8]:
    """The drawn figure as an array (rows, columns, RGB)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG with a palette: the same bytes every time, half the size of full colour.

    Greys get a palette of their own, so that a scan neither shows steps nor takes on a tint.
    """
    rgb = figure_array(figure)
    grey = np.ptp(rgb, axis=-1) <= 3
    indices = np.round(rgb[..., 1] * ((_N_GREYS - 1) / 255)).astype(np.uint8)
    palette = np.repeat(np.linspace(0, 255, _N_GREYS).round().astype(int), 3).tolist()
    if not grey.all():
        strip = Image.fromarray(rgb[~grey][None]).quantize(
            256 - _N_GREYS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        indices[~grey] = np.asarray(strip)[0] + _N_GREYS
        palette += strip.getpalette() or []
    image = Image.fromarray(indices)
    image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(figure_png(figure))
