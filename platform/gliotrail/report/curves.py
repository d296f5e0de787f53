"""Curves of a training: losses, measures per class and per region, learning rate, throughput.

Points are keyed as in MLflow, `split/measure` or `split/measure_SUBJECT`: `train/soft_dice_loss`,
`val/dice_edema`, `val/sensitivity_WT`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.report.colours import FAINT, FOREGROUND, SPLIT_COLOURS, colours_of, spoken
from gliotrail.report.figures import add_legend, add_title, dark_axes, new_figure
from gliotrail.runs.journal import Point

Points = Sequence[tuple[int, float]]
"""(step or epoch, value). A value that is not finite leaves a gap."""

_UNITS = {"_mm": "mm", "_ml": "ml", "_per_s": "1/s", "_s": "s", "_gb": "GB"}
_MEANS = {"mean_classes": "class", "mean_regions": "region"}
_SHARES = ("dice", "sensitivity", "specificity", "precision")
_ORDER = ("soft_dice_loss", "loss", "dice", "sensitivity", "specificity")
_MARKERS = {"val": "o", "test": "D"}
_WIDE_IN, _HIGH_IN = 5.0, 2.7
_NOT_DRAWN = {
    f"train/{name}"
    for name in ("data_wait_share", "step_s_median", "step_s_p95", "peak_gpu_gb", "mfu")
}


class Curve(NamedTuple):
    """A key's parts: `val/dice_edema` is (val, dice, edema, class)."""

    split: str
    measure: str
    subject: str
    family: str


def parse_key(key: str, task: Task = BRATS) -> Curve:
    """A metric's key in its parts. Subject and family (class, region) may be empty."""
    split, _, measure = key.rpartition("/")
    families = {
        **_MEANS,
        **dict.fromkeys(task.class_names, "class"),
        **dict.fromkeys(task.region_names, "region"),
    }
    # longest first: a key that ends in non_enhancing ends in enhancing too
    for subject, family in sorted(families.items(), key=lambda of: -len(of[0])):
        if measure.endswith(f"_{subject}"):
            return Curve(split, measure.removesuffix(f"_{subject}"), subject, family)
    return Curve(split, measure, "", "")


def axis_name(measure: str, family: str = "") -> str:
    """A measure with its unit: (`dice`, `class`) is `Dice per class (0 to 1)`."""
    unit = "0 to 1" if measure in _SHARES or measure.endswith("_share") else "no unit"
    for suffix, its_unit in _UNITS.items():
        if measure.endswith(suffix):
            measure, unit = measure.removesuffix(suffix), its_unit
            break
    name = measure.replace("_", " ").replace("dice", "Dice").replace("hd95", "HD95")
    return f"{name}{f' per {family}' if family else ''} ({unit})"


def smoothed(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Centred running mean over `window` values, fewer at the ends; gaps are left out."""
    known = np.isfinite(values)
    weights = np.ones(2 * (window // 2) + 1)
    total = np.convolve(np.where(known, values, 0), weights)
    count = np.convolve(known.astype(float), weights)
    half = window // 2
    inner = slice(half, half + values.size)
    return np.where(known, total[inner] / np.maximum(count[inner], 1), np.nan)


def window_of(steps: int) -> int:
    """The window of a training's running mean: a twentieth of its steps."""
    return max(1, steps // 20)


def draw_run(points: Sequence[Point], title: str, task: Task) -> Figure:
    """`draw_curves` of a training's journal, without the times of single steps."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        if point.key.startswith(("train/", "val/")) and point.key not in _NOT_DRAWN:
            curves.setdefault(point.key, []).append((point.step, point.value))
    return draw_curves(curves, title, task=task)


def draw_curves(
    points: Mapping[str, Points], title: str, *, x_name: str = "step", task: Task = BRATS
) -> Figure:
    """A panel with a legend for each measure; classes, regions and the rest have separate ones.

    Training is drawn thin, with its running mean (a twentieth of its length) thick; validation and
    test with markers. Dice and its like are on a scale from 0 to 1 (specificity: up to 1), a
    positive measure that spans more than two decades is on a logarithmic one (not the learning
    rate, whose warm-up starts near 0).
    """
    panels: dict[tuple[str, str], dict[str, Points]] = {}
    for key, series in points.items():
        if series:
            curve = parse_key(key, task)
            panels.setdefault((curve.measure, curve.family), {})[key] = series
    ordered = sorted(panels, key=lambda panel: (_place(panel[0]), panel))
    n_columns = min(2, max(1, len(ordered)))
    n_rows = max(1, -(-len(ordered) // n_columns))
    high_in = n_rows * _HIGH_IN + 0.55
    figure = new_figure(n_columns * _WIDE_IN + 0.2, high_in)
    add_title(figure, 0.2, high_in - 0.26, title)
    width_in = figure.get_size_inches()[0]
    for n, panel in enumerate(ordered):
        row, column = divmod(n, n_columns)
        left_in, low_in = column * _WIDE_IN + 0.85, high_in - 0.5 - (row + 1) * _HIGH_IN + 0.55
        axes = figure.add_axes((
            left_in / width_in, low_in / high_in,
            (_WIDE_IN - 1.0) / width_in, (_HIGH_IN - 0.9) / high_in,
        ))  # fmt: skip
        _draw_panel(axes, *panel, panels[panel], x_name, task)
    return figure


def _draw_panel(
    axes: Axes,
    measure: str,
    family: str,
    curves: Mapping[str, Points],
    x_name: str,
    task: Task,
) -> None:
    dark_axes(axes)
    colours = {**colours_of(task), **dict.fromkeys(_MEANS, FOREGROUND)}
    axes.set_xlabel(x_name, color=FAINT, fontsize=8.5)
    axes.set_ylabel(axis_name(measure, family), color=FOREGROUND, fontsize=9, parse_math=False)
    entries = []
    several = len({parse_key(key, task).split for key in curves}) > 1
    for key in sorted(curves, key=lambda key: _legend_place(key, task)):
        split, _, subject, _ = parse_key(key, task)
        colour = colours.get(subject) or SPLIT_COLOURS.get(split, FAINT)
        x = np.array([at for at, _ in curves[key]], float)
        y = np.array([v if math.isfinite(v) else np.nan for _, v in curves[key]], float)
        look: dict[str, object] = {"color": colour, "linewidth": 1.8}
        if split in _MARKERS:
            look |= {"marker": _MARKERS[split], "markersize": 4, "linewidth": 1.3}
            axes.plot(x, y, **look)  # type: ignore[arg-type]
        else:
            window = 1 if measure == "learning_rate" else window_of(len(x))
            if window > 1:
                axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.4)
            axes.plot(x, smoothed(y, window), **look)  # type: ignore[arg-type]
        name = " ".join(part for part in (split if several or not subject else "", spoken(subject)))
        entries.append((Line2D([], [], **look), name.strip() or measure))  # type: ignore[arg-type]
    _set_scale(axes, measure)
    add_legend(
        axes, entries, loc="lower left", bbox_to_anchor=(0, 1.02), borderaxespad=0, fontsize=7.5,
        ncol=4, columnspacing=1.0, handlelength=1.5, handletextpad=0.4,
    )  # fmt: skip


def _set_scale(axes: Axes, measure: str) -> None:
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return
    if measure == "specificity":
        axes.set_ylim(top=1)
    elif measure in _SHARES:
        axes.set_ylim(0, 1)
    elif measure != "learning_rate" and drawn.min() > 0 and drawn.max() > 100 * drawn.min():
        axes.set_yscale("log")
    elif drawn.min() >= 0:
        axes.set_ylim(bottom=0)


def _place(measure: str) -> int:
    return _ORDER.index(measure) if measure in _ORDER else len(_ORDER)


def _legend_place(key: str, task: Task) -> tuple[str, int, str]:
    split, _, subject, _ = parse_key(key, task)
    subjects = task.names
    return split, subjects.index(subject) if subject in subjects else len(subjects), key
