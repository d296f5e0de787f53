"""Pictures of a sweep: parallel coordinates, learning rate against Dice, budget spent per rung.

A trial's status shows without colour, too: finished trials are drawn full, those stopped early
hollow or dashed, failed ones as crosses or dotted. The charts suit 2 trials and 1,000.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from gliotrail.report.colours import (
    BACKGROUND,
    FAINT,
    FOREGROUND,
    SERIES_COLOURS,
    STATUS_COLOURS,
)
from gliotrail.report.figures import add_legend, add_title, dark_axes, new_figure

DICE: Final = "validation Dice (0 to 1)"
_SPOKEN: Final = {"FINISHED": "finished", "STOPPED": "stopped early", "FAILED": "failed"}
_MARKERS: Final = "os^Dv"
"""One more than there are colours: sizes of the same colour have different markers."""
_NO_DICE: Final = -0.1
"""Where a parallel line without Dice ends: below the axes, which go from 0 to 1."""
_MOST_TICKS: Final = 8


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: FINISHED, STOPPED (early) or FAILED.

    values: by key, `learning_rate` and `patch_size` at least.
    score: mean Dice over regions of whole validation scans; None where there is none.
    voxels, epochs: how much of its budget it saw.
    """

    values: Mapping[str, Any]
    status: str
    score: float | None
    voxels: int
    epochs: float


class Scale(NamedTuple):
    """An axis from 0 to 1: each value's position, and the tick positions."""

    places: list[float]
    ticks: list[tuple[float, str]]


def scale_of(values: Sequence[Any], logarithmic: bool = False) -> Scale:
    """Numbers from the lowest to the highest, anything else one after another."""
    distinct = sorted(set(values), key=order)
    if not distinct:
        return Scale([], [])
    if not all(_is_number(value) for value in values):
        step = 1 / max(1, len(distinct) - 1)
        at = {v: n * step if len(distinct) > 1 else 0.5 for n, v in enumerate(distinct)}
        every = -(-len(distinct) // _MOST_TICKS)
        return Scale([at[v] for v in values], [(at[v], str(v)) for v in distinct[::every]])
    low, high = float(distinct[0]), float(distinct[-1])
    to, back = (math.log, math.exp) if logarithmic and low > 0 else (float, float)
    span = to(high) - to(low)

    def place(value: float) -> float:
        return (to(value) - to(low)) / span if span else 0.5

    named = distinct
    if len(distinct) > _MOST_TICKS:
        named = [back(to(low) + span * n / 4) for n in range(5)]
    return Scale([place(value) for value in values], [(place(v), f"{v:.3g}") for v in named])


def order(value: Any) -> tuple[Any, ...]:
    """The sort key of values: numbers, then sizes by their voxels, then words."""
    if _is_number(value):
        return 0, value
    sides = str(value).split("x")
    if all(side.isdecimal() for side in sides):
        return 1, math.prod(map(int, sides)), str(value)
    return 2, str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def draw_parallel(
    trials: Sequence[Outcome], title: str, logarithmic: Collection[str] = ("learning_rate",)
) -> Figure:
    """A line for each trial, over an axis for each key and one for Dice. The best is on top.

    Args:
        logarithmic: keys with a logarithmic axis.
    """
    keys = list(trials[0].values)
    scales = [scale_of([trial.values[key] for trial in trials], key in logarithmic) for key in keys]
    known = scale_of([trial.score for trial in trials if trial.score is not None])
    places = iter(known.places)
    dice = [_NO_DICE if trial.score is None else next(places) for trial in trials]
    none = [(_NO_DICE, "none")] if _NO_DICE in dice else []
    scales.append(Scale(dice, known.ticks + none))
    figure, axes = _one_panel(max(6.0, 1.6 * len(scales)), 4.4, title)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlim(-0.15, len(keys) + 0.35)
    axes.set_ylim(_NO_DICE - 0.04, 1.06)
    axes.set_xticks(range(len(scales)), [*keys, "Dice"], color=FOREGROUND, parse_math=False)
    axes.tick_params(length=0)
    axes.set_yticks([])

    entries: list[tuple[Artist, str]] = []
    ramp = matplotlib.colormaps["cividis"]
    for status, style in (("FAILED", ":"), ("STOPPED", "--"), ("FINISHED", "-")):
        # the better over the worse
        of = sorted((n for n, t in enumerate(trials) if t.status == status), key=dice.__getitem__)
        if not of:
            continue
        lines = [list(enumerate(scale.places[n] for scale in scales)) for n in of]
        # many are drawn thinly, so that common patterns show
        alpha = max(0.15, min(1.0, (20 / len(of)) ** 0.5))
        colours: Any = STATUS_COLOURS[status]
        if status == "FINISHED":
            colours = [ramp(0.35 + 0.65 * dice[n]) for n in of]
            ends = dict.fromkeys((of[-1], of[0]))
            for n, name in zip(ends, ("best", "worst"), strict=False):
                look = {"color": ramp(0.35 + 0.65 * dice[n]), "linewidth": 2.4}
                label = f"{name} finished, Dice {trials[n].score:.3f}"
                entries.append((Line2D([], [], **look), label))  # type: ignore[arg-type]
        else:
            handle = Line2D([], [], color=colours, linestyle=style)  # type: ignore[arg-type]
            entries.append((handle, _SPOKEN[status]))
        axes.add_collection(
            LineCollection(lines, colors=colours, linestyles=style, linewidths=1.0, alpha=alpha)
        )
        if status == "FINISHED":
            axes.add_collection(LineCollection(lines[-1:], colors=colours[-1:], linewidths=2.4))
    for x, scale in enumerate(scales):
        axes.axvline(x, color=FAINT, linewidth=0.8, zorder=0.5)
        for y, name in scale.ticks:
            axes.text(x + 0.03, y, name, color=FOREGROUND, fontsize=8, va="center",
                      parse_math=False, bbox={"facecolor": BACKGROUND, "edgecolor": "none",
                      "pad": 0.6})  # fmt: skip
    _legend(axes, entries)
    return figure


def draw_rates(trials: Sequence[Outcome], title: str) -> Figure:
    """Learning rate against Dice: a colour and a marker for each patch size.

    Full: finished. Hollow: stopped early, at the Dice it had then. A cross at the foot: failed.
    """
    figure, axes = _one_panel(7.0, 4.4, title)
    axes.set_xscale("log")
    rates = [trial.values["learning_rate"] for trial in trials]
    axes.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
    ticks = _ticks(rates)
    axes.xaxis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate", color=FOREGROUND, fontsize=9)
    axes.set_ylabel(DICE, color=FOREGROUND, fontsize=9)
    entries: list[tuple[Artist, str]] = []
    statuses = {trial.status for trial in trials}
    for n, size in enumerate(sorted({trial.values["patch_size"] for trial in trials}, key=order)):
        colour = SERIES_COLOURS[n % len(SERIES_COLOURS)]
        marker, size_pt = _MARKERS[n % len(_MARKERS)], 6 if len(trials) <= 100 else 4
        look: dict[str, Any] = {"marker": marker, "markersize": size_pt, "linestyle": "",
                                "color": colour}  # fmt: skip
        entries.append((Line2D([], [], **look), str(size)))
        for status, full in (("STOPPED", False), ("FINISHED", True)):
            of = [t for t in trials if t.values["patch_size"] == size and t.status == status]
            drawn = [(t.values["learning_rate"], t.score) for t in of if t.score is not None]
            if drawn:
                fill = {} if full else {"markerfacecolor": "none", "alpha": 0.6}
                axes.plot(*zip(*drawn, strict=True), **look, **fill)  # type: ignore[arg-type]
        failed = [t.values["learning_rate"] for t in trials
                  if t.values["patch_size"] == size and t.status == "FAILED"]  # fmt: skip
        foot = axes.get_xaxis_transform()  # whatever the scores are
        axes.plot(failed, [0.02] * len(failed), transform=foot, **look | {"marker": "x"})
    for status, symbol in (("STOPPED", {"marker": "o", "markerfacecolor": "none"}),
                           ("FAILED", {"marker": "x"})):  # fmt: skip
        if status in statuses:
            handle = Line2D([], [], linestyle="", color=FAINT, **symbol)  # type: ignore[arg-type]
            entries.append((handle, _SPOKEN[status]))
    _legend(axes, entries)
    return figure


def _ticks(rates: Sequence[float]) -> list[float]:
    """Ticks at the values, as far as their labels have room; empty if there are many."""
    values = sorted(set(rates))
    if len(values) > 8:
        return []
    room = math.log(max(rates) / min(rates)) / 9
    ticks = values[:1]
    for value in values[1:]:
        if math.log(value / ticks[-1]) > room:
            ticks.append(value)
    return ticks


def draw_budget(trials: Sequence[Outcome], rungs: Sequence[int], title: str) -> Figure:
    """Voxels that all trials saw on the way to each rung, by how they ended.

    Args:
        rungs: epochs, in their order; the last is the budget's end.
    """
    figure, axes = _one_panel(7.0, 4.0, title)
    axes.set_ylabel("voxels seen (millions)", color=FOREGROUND, fontsize=9)
    entries: list[tuple[Artist, str]] = []
    starts = [0, *rungs[:-1]]
    tops = [0.0] * len(rungs)
    hatches = {"FINISHED": None, "STOPPED": "//", "FAILED": "xx"}
    for status, hatch in hatches.items():
        of = [trial for trial in trials if trial.status == status and trial.epochs > 0]
        heights = [
            sum(t.voxels * max(0.0, min(t.epochs, stop) - start) / t.epochs for t in of) / 1e6
            for start, stop in zip(starts, rungs, strict=True)
        ]
        if any(heights):
            look: dict[str, Any] = {"facecolor": STATUS_COLOURS[status], "hatch": hatch,
                                    "edgecolor": BACKGROUND, "linewidth": 0.5}  # fmt: skip
            axes.bar(range(len(rungs)), heights, 0.7, tops, **look)
            entries.append((Patch(**look), _SPOKEN[status]))
        tops = [top + height for top, height in zip(tops, heights, strict=True)]
    names = []
    for n, (start, stop) in enumerate(zip(starts, rungs, strict=True)):
        names.append(f"epoch {stop}" if stop - start == 1 else f"epochs {start + 1} to {stop}")
        there = sum(trial.epochs > start for trial in trials)
        axes.annotate(f"{there} trials", (n, tops[n]), (0, 3), textcoords="offset points",
                      ha="center", color=FOREGROUND, fontsize=8)  # fmt: skip
    axes.set_xticks(range(len(rungs)), names)
    axes.set_xlim(-0.6, len(rungs) - 0.4)
    axes.set_ylim(0, max([*tops, 1e-9]) * 1.12)
    _legend(axes, entries)
    return figure


def _one_panel(wide_in: float, high_in: float, title: str) -> tuple[Figure, Axes]:
    figure = new_figure(wide_in, high_in)
    add_title(figure, 0.2, high_in - 0.26, title)
    left_in, low_in, top_in = 0.75, 0.55, 0.85
    axes = figure.add_axes((
        left_in / wide_in, low_in / high_in,
        (wide_in - left_in - 0.2) / wide_in, (high_in - low_in - top_in) / high_in,
    ))  # fmt: skip
    dark_axes(axes)
    return figure, axes


def _legend(axes: Axes, entries: Sequence[tuple[Artist, str]]) -> None:
    add_legend(
        axes, entries, loc="lower left", bbox_to_anchor=(0, 1.02), borderaxespad=0, fontsize=7.5,
        ncol=6, columnspacing=1.0, handlelength=1.8, handletextpad=0.4,
    )  # fmt: skip
