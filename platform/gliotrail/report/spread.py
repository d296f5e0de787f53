"""How values spread over cases: every case a point, boxes behind where there are enough."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gliotrail.report.colours import FAINT, FOREGROUND, spoken
from gliotrail.report.figures import add_legend, dark_axes, fit_names

MARKERS: Final[Mapping[str, str]] = {"train": "o", "val": "s", "test": "D", "": "^"}
"""By part of the split; the last is for cases in no part."""
_LEAST_FOR_A_BOX: Final = 5
_GOLDEN: Final = 0.6180339887498949


class Group(NamedTuple):
    """A column of points: its name, its colour, and the value of each case with its part."""

    name: str
    colour: str
    points: Sequence[tuple[str, float]]


def draw_spread(axes: Axes, groups: Sequence[Group], y_name: str) -> None:
    """A column of points for each group; quartiles, median and whiskers where there are 5 or more.

    Whiskers reach to the last value within 1.5 times the distance of the quartiles (Tukey).
    """
    dark_axes(axes)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(y_name, color=FOREGROUND, fontsize=9, parse_math=False)
    for x, group in enumerate(groups):
        values = [value for _, value in group.points]
        if len(values) >= _LEAST_FOR_A_BOX:
            line = {"color": group.colour, "linewidth": 1.2}
            axes.boxplot(
                [values], positions=[x], widths=0.62, showfliers=False, manage_ticks=False,
                boxprops=line, whiskerprops=line, capprops=line,
                medianprops={"color": FOREGROUND, "linewidth": 1.6}, zorder=1,
            )  # fmt: skip
        # side by side, the same each time
        wide = 0.5 if len(values) >= _LEAST_FOR_A_BOX else 0.12 * (len(values) - 1)
        size_pt = 6 if len(values) <= 40 else 3
        for n, (part, value) in enumerate(group.points):
            at = x + wide * ((n * _GOLDEN) % 1 - 0.5) if len(values) > 1 else x
            axes.plot(
                at, value, MARKERS[part], markersize=size_pt, color=group.colour, alpha=0.85,
                markeredgecolor="black", markeredgewidth=0.5, zorder=2,
            )  # fmt: skip
    names = [
        f"{spoken(group.name).replace(', ', chr(10))}\nn = {len(group.points)}" for group in groups
    ]
    axes.set_xticks(range(len(groups)), names, color=FOREGROUND, parse_math=False)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    fit_names(axes)
    parts = dict.fromkeys(part for group in groups for part, _ in group.points)
    if len(parts) > 1:
        entries = [
            (Line2D([], [], marker=MARKERS[part], color=FAINT, linestyle=""), part or "in no part")
            for part in MARKERS
            if part in parts
        ]
        add_legend(
            axes, entries, loc="lower left", bbox_to_anchor=(0, 1.02), borderaxespad=0,
            ncol=len(entries), handletextpad=0.3, columnspacing=1.2,
        )  # fmt: skip
