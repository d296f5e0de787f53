"""Pictures on a light ground: a drawn figure whose ground, text and lines change their colours.

Scans stay as they are: grey on black, with the classes' own colours over them and in the legend.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure

from gliotrail.report.colours import BACKGROUND, FAINT, FOREGROUND, rgb

Theme = Literal["dark", "light"]
LIGHT_GROUND: Final[Mapping[str, str]] = {
    BACKGROUND: "#FFFFFF",
    FOREGROUND: "#15181C",
    FAINT: "#56606D",
}
LIGHT_LINES: Final[Mapping[str, str]] = {
    "#56B4E9": "#1E9BE2",
    "#D55E00": "#4B2100",
    "#F0E442": "#AA9F0D",
    "#9D7BFF": "#490AFF",
    "#CC79A7": "#762D55",
    "#5B5BFF": "#0000D0",
    "#C9D1DB": "#657B97",
    "#FF9F40": "#BF5F00",
    "#8A6CFF": "#1E0091",
}
"""Darker, so that they stay apart on white; tests/report/test_colours.py holds the distances."""
_PARTS: Final = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def in_theme(figure: Figure, theme: Theme) -> Figure:
    """The figure itself; all are drawn dark."""
    if theme == "dark":
        return figure
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]  # this makes its ticks
    panels = [axes for axes in figure.axes if not to_rgba_array(axes.get_facecolor())[0, :3].any()]
    table = dict(LIGHT_GROUND) if panels else {**LIGHT_GROUND, **LIGHT_LINES}
    exchanged = {rgb(old): rgb(new) for old, new in table.items()}
    for artist in dict.fromkeys(figure.findobj()):  # light text has the dark ground's old colour
        if getattr(artist, "axes", None) not in panels:
            _exchange(artist, exchanged)
            box = getattr(artist, "get_bbox_patch", lambda: None)()
            if box is not None:
                _exchange(box, exchanged)
    for patch in (patch for legend in figure.legends for patch in legend.get_patches()):
        if to_rgba_array(patch.get_facecolor())[0].min() == 1:  # over a scan, too: it has a rim
            patch.set_edgecolor(LIGHT_GROUND[FAINT])
    return figure


def _exchange(
    artist: Any, table: Mapping[tuple[float, float, float], tuple[float, float, float]]
) -> None:
    changes = []  # all are read first: a marker's colour may be its line's
    for part in _PARTS:
        read, write = (getattr(artist, f"{verb}_{part}", None) for verb in ("get", "set"))
        if read is None or write is None:
            continue
        rgba = to_rgba_array(read())
        new = rgba.copy()
        for old, other in table.items():
            new[np.abs(rgba[:, :3] - old).max(axis=1) < 2e-3, :3] = other
        if (new != rgba).any():
            changes.append((write, tuple(new[0]) if len(new) == 1 else new))
    for write, value in changes:
        write(value)
