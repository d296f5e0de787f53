"""Pictures and tables of an evaluation: the worst cases first, measures, volumes, confusion."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.files import csv_bytes, write_json
from gliotrail.imaging.geometry import Box, vox3
from gliotrail.imaging.labels import Labels
from gliotrail.report.colours import FAINT, FOREGROUND, colours_of, spoken
from gliotrail.report.curves import axis_name
from gliotrail.report.figures import (
    add_legend,
    add_text,
    add_title,
    dark_axes,
    fit_names,
    new_figure,
    save_figure,
)
from gliotrail.report.overlays import prediction_legends, show_errors, show_prediction
from gliotrail.report.panels import (
    CONVENTION,
    Plane,
    Spacing,
    cut,
    foreground_mask,
    grey_window,
    greys,
    mark_sides,
    new_sheet,
    pixel_mm,
    shown_channels,
)
from gliotrail.report.spread import Group, draw_spread
from gliotrail.segmentation.score import Measures, Score

PER_SHEET: Final = 6
MEASURES: Final = ("dice", "sensitivity", "specificity", "hd95_mm")
_TABLE: Final = (*MEASURES, "surface_dice", "volume_ref_ml", "volume_pred_ml")
_MARKERS: Final = "osDv^P"


class Look(NamedTuple):
    """A case as a row of the montage: the axial slice with most labelled or predicted voxels."""

    greys: Mapping[str, Plane]
    labels: Plane
    predicted: Plane
    pixel_size_mm: tuple[float, float]


def look(
    image_CIJK: npt.NDArray[Any],
    labels_IJK: Labels,
    predicted_IJK: Labels,
    spacing_mm: Spacing,
    task: Task = BRATS,
) -> Look:
    """A case's row of the montage, cropped to the foreground in its slice."""
    foreground = foreground_mask(image_CIJK)
    k = int(((labels_IJK > 0) | (predicted_IJK > 0)).sum(axis=(0, 1)).argmax())
    seen = Box.around(foreground[:, :, k : k + 1]).grown(3)
    i, j, _ = seen.meet(Box((0, 0, 0), vox3(foreground.shape))).slices
    planes = {}
    for name in shown_channels(task):
        image = image_CIJK[task.channel_names.index(name)]
        window, inside = grey_window(image, foreground), foreground[i, j]
        planes[name] = greys(cut(image[i, j], "axial", k), cut(inside, "axial", k), window)
    return Look(
        planes,
        cut(labels_IJK[i, j], "axial", k),
        cut(predicted_IJK[i, j], "axial", k),
        pixel_mm(spacing_mm, "axial"),
    )


def write_charts(
    folder: Path,
    scores: Mapping[str, Score],
    looks: Mapping[str, Look],
    confusion_rp: npt.NDArray[np.int64],
    task: Task = BRATS,
) -> None:
    """Write an evaluation's pictures and tables to a new folder.

    `montage_1.png` and so on are the cases, the worst first; `measures.png`, `volumes.png` and
    `confusion.png` all of them together; `table.json` is a row for each case and class or region,
    `confusion.csv` the voxels of each pair of labels.
    """
    folder.mkdir(parents=True)
    names = worst_first(scores)
    for n, start in enumerate(range(0, len(names), PER_SHEET), start=1):
        sheet = draw_montage(names[start : start + PER_SHEET], looks, scores, task)
        save_figure(sheet, folder / f"montage_{n}.png")
    save_figure(draw_measures(scores, task), folder / "measures.png")
    save_figure(draw_volumes(scores, task), folder / "volumes.png")
    save_figure(draw_confusion(confusion_rp, task), folder / "confusion.png")
    write_json(folder / "table.json", case_table(scores))
    rows = confusion_rows(confusion_rp, task)
    (folder / "confusion.csv").write_bytes(csv_bytes(rows[0], rows))


def worst_first(scores: Mapping[str, Score]) -> list[str]:
    """Names of cases by their mean Dice over regions; those without any Dice come last."""

    def place(name: str) -> tuple[bool, float, str]:
        dice = scores[name].mean_regions.dice
        return dice is None, dice or 0.0, name

    return sorted(scores, key=place)


def draw_montage(
    names: Sequence[str],
    looks: Mapping[str, Look],
    scores: Mapping[str, Score],
    task: Task = BRATS,
) -> Figure:
    """A row for each case, in the order given: truth and prediction, and where they differ."""
    columns = [*looks[names[0]].greys, "agreement and errors"]
    sizes_mm = []
    for name in names:
        rows, wide = looks[name].labels.shape
        width_mm, height_mm = looks[name].pixel_size_mm
        sizes_mm.append((wide * width_mm, rows * height_mm))
    wide_mm = max(width for width, _ in sizes_mm)
    figure, panels = new_sheet(
        widths_mm=[wide_mm] * len(columns),
        heights_mm=[height for _, height in sizes_mm],
        title="Held-out cases, the worst first: the axial slice with most labelled voxels",
        row_names=[_row_name(name, scores[name]) for name in names],
        column_names=columns,
        legends=prediction_legends(task),
        note=CONVENTION,
        most_high_in=2.5 * len(names),
        names_in=1.35,
    )
    for line, name, (width_mm, _) in zip(panels, names, sizes_mm, strict=True):
        seen = looks[name]
        planes = [*seen.greys.values(), next(iter(seen.greys.values()))]
        for n, (axes, grey) in enumerate(zip(line, planes, strict=True)):
            draw = show_prediction if n < len(seen.greys) else show_errors
            draw(axes, grey, seen.labels, seen.predicted, seen.pixel_size_mm, task)
            axes.set_xlim((width_mm - wide_mm) / 2, (width_mm + wide_mm) / 2)
            mark_sides(axes, "axial")
    return figure


def _row_name(name: str, score: Score) -> str:
    dice = {"mean Dice": score.mean_regions.dice}
    dice |= {region: of.dice for region, of in (score.regions or score.classes).items()}
    lines = (f"{key} {'none' if value is None else f'{value:.3f}'}" for key, value in dice.items())
    return "\n".join([name if len(name) <= 16 else f"{name[:15]}…", *lines])


def draw_measures(scores: Mapping[str, Score], task: Task = BRATS) -> Figure:
    """Dice, sensitivity, specificity and HD95 of each class and region, a point a case."""
    colours = colours_of(task)
    wide_in, high_in = 10.2, 6.9
    figure = new_figure(wide_in, high_in)
    add_title(figure, 0.2, high_in - 0.26, f"Measures of the held-out cases: {len(scores)}")
    for n, measure in enumerate(MEASURES):
        row, column = divmod(n, 2)
        axes = figure.add_axes((
            (0.7 + 5.0 * column) / wide_in, (3.85 - 3.2 * row) / high_in,
            4.3 / wide_in, 2.45 / high_in,
        ))  # fmt: skip
        groups = [
            Group(name, colours[name], [("test", value) for value in values])
            for name, values in _values(scores, measure, task).items()
        ]
        draw_spread(axes, groups, axis_name(measure))
        short = [f"{name.replace('_', '-')}\nn = {len(of)}" for name, _, of in groups]
        axes.set_xticks(range(len(short)), short, fontsize=7.5, rotation=0)
        fit_names(axes)
        if measure == "hd95_mm":
            axes.set_ylim(bottom=0)
        elif measure == "specificity":
            axes.set_ylim(top=1 + 0.03 * (1 - axes.get_ylim()[0]))
        else:
            axes.set_ylim(-0.03, 1.03)
    return figure


def _values(scores: Mapping[str, Score], measure: str, task: Task) -> dict[str, list[float]]:
    """The defined values of a measure, by class and region."""
    values: dict[str, list[float]] = {name: [] for name in task.names}
    for score in scores.values():
        for name, of in {**score.classes, **score.regions}.items():
            value = getattr(of, measure)
            if value is not None:
                values[name].append(value)
    return values


def draw_volumes(scores: Mapping[str, Score], task: Task = BRATS) -> Figure:
    """Predicted against true volume of each class and region; on the line they are equal."""
    wide_in, high_in = 10.2, 5.1
    figure = new_figure(wide_in, high_in)
    title = f"Predicted against true volumes, held-out cases: {len(scores)}"
    add_title(figure, 0.2, high_in - 0.26, title)
    kinds: tuple[tuple[str, Callable[[Score], Mapping[str, Measures]]], ...] = (
        ("classes", lambda score: score.classes),
        ("regions", lambda score: score.regions),
    )
    colours = colours_of(task)
    for column, (kind, of) in enumerate(kinds[: 1 + bool(task.regions)]):
        names = task.class_names if kind == "classes" else task.region_names
        axes = figure.add_axes((
            (0.75 + 4.9 * column) / wide_in, 0.6 / high_in, 3.7 / wide_in, 3.7 / high_in
        ))  # fmt: skip
        dark_axes(axes)
        entries = []
        most = 1.0
        for marker, name in zip(cycle(_MARKERS), names, strict=False):
            volumes = [
                (of(s)[name].volume_ref_ml, of(s)[name].volume_pred_ml) for s in scores.values()
            ]
            look = {"marker": marker, "linestyle": "", "color": colours[name]}
            axes.plot(*zip(*volumes, strict=True), **look, markersize=6, alpha=0.85)  # type: ignore[arg-type]
            entries.append((Line2D([], [], **look), spoken(name)))  # type: ignore[arg-type]
            most = max(most, *(max(pair) for pair in volumes))
        axes.plot([0, 2 * most], [0, 2 * most], color=FAINT, linewidth=1, linestyle="--", zorder=1)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_yscale("symlog", linthresh=1)
        axes.set(xlim=(0, 1.5 * most), ylim=(0, 1.5 * most))
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(plain)
        axes.set_xlabel(f"truth, {kind} (ml)", color=FOREGROUND, fontsize=9)
        axes.set_ylabel("prediction (ml)", color=FOREGROUND, fontsize=9)
        add_legend(
            axes, entries, loc="lower left", bbox_to_anchor=(0, 1.02), borderaxespad=0, ncol=3,
            handletextpad=0.2, columnspacing=1.0, fontsize=8,
        )  # fmt: skip
    return figure


def draw_confusion(confusion_rp: npt.NDArray[np.int64], task: Task = BRATS) -> Figure:
    """How the voxels of each true label were labelled: shares of the row as colour, and counts."""
    wide_in, high_in = 7.0, 5.3
    figure = new_figure(wide_in, high_in)
    add_title(figure, 0.2, high_in - 0.26, "Confusion matrix in voxels of all held-out cases")
    axes = figure.add_axes((1.35 / wide_in, 0.85 / high_in, 5.3 / wide_in, 3.75 / high_in))
    dark_axes(axes)
    axes.grid(visible=False)
    shares = confusion_rp / np.maximum(1, confusion_rp.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for r, p in np.ndindex(confusion_rp.shape):
        text = f"{confusion_rp[r, p]:,}\n{shares[r, p]:.1%}"
        ink = "black" if shares[r, p] > 0.55 else FOREGROUND
        axes.text(p, r, text, ha="center", va="center", fontsize=9.5, color=ink)
    names = [spoken(name) for name in ("background", *task.class_names)]
    axes.set_xticks(range(len(names)), names, color=FOREGROUND, fontsize=8.5)
    axes.set_yticks(range(len(names)), names, color=FOREGROUND, fontsize=8.5)
    fit_names(axes)
    axes.set_xlabel("prediction", color=FOREGROUND, fontsize=9)
    axes.set_ylabel("truth", color=FOREGROUND, fontsize=9)
    note = "A row is a true label; percentages are shares of it, and so are the colours."
    add_text(figure, 0.2, 0.2, note, color=FAINT, fontsize=7.5)
    return figure


def confusion_rows(confusion_rp: npt.NDArray[np.int64], task: Task = BRATS) -> list[dict[str, Any]]:
    """The matrix for `dvc plots`: a row a pair of labels."""
    totals, names = np.maximum(1, confusion_rp.sum(axis=1)), ("background", *task.class_names)
    return [
        {
            "truth": spoken(truth),
            "prediction": spoken(prediction),
            "voxels": int(confusion_rp[r, p]),
            "share_of_truth": round(float(confusion_rp[r, p] / totals[r]), 6),
        }
        for r, truth in enumerate(names)
        for p, prediction in enumerate(names)
    ]


def case_table(scores: Mapping[str, Score]) -> dict[str, list[Any]]:
    """A row for each case and class or region, the worst case first, as MLflow reads a table."""
    columns = ["case", "of", *_TABLE]
    rows = []
    for name in worst_first(scores):
        for subject, of in {**scores[name].classes, **scores[name].regions}.items():
            values = [getattr(of, key) for key in _TABLE]
            rows.append([name, subject, *(v if v is None else round(v, 6) for v in values)])
    return {"columns": columns, "data": rows}
