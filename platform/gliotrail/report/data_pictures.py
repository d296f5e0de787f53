"""Pictures of prepared data: each case, all cases at a glance, intensities, volumes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gliotrail.dataset.task import Task
from gliotrail.files import csv_bytes, replacing
from gliotrail.imaging.case_cache import forget_others, key_of, made
from gliotrail.imaging.labels import known_labels
from gliotrail.imaging.prepare import killed_as_error, pool_of
from gliotrail.imaging.prepared import Prepared, PreparedCase
from gliotrail.imaging.split import Split
from gliotrail.progress import progress
from gliotrail.report.animation import write_gif
from gliotrail.report.colours import (
    FAINT,
    FOREGROUND,
    SPLIT_COLOURS,
    colours_of,
)
from gliotrail.report.figures import (
    add_legend,
    add_title,
    dark_axes,
    new_figure,
    save_figure,
)
from gliotrail.report.overlays import class_legend, draw_case
from gliotrail.report.panels import (
    CONVENTION,
    Plane,
    caption,
    cut,
    grey_window,
    greys,
    mark_sides,
    new_sheet,
    pixel_mm,
    show_greys,
    show_outlines,
    shown_channels,
)
from gliotrail.report.spread import Group, draw_spread

_FEW_CASES: Final = 8
"""As many are drawn in this process: a pool takes a second to start."""
_PER_SHEET: Final = 40
_BINS: Final = 64
_STANDARD: Final = (-4.0, 6.0)


class _Seen(NamedTuple):
    """A case's part in the pictures of the whole data set.

    grey, labels: its axial slice with the most labelled voxels, within the box.
    counts_CRB: of each channel, the foreground's voxels by raw and by standardised value.
    volumes_ml: by class; None where it is unlabelled.
    """

    name: str
    grey: Plane
    labels: Plane
    pixel_size_mm: tuple[float, float]
    counts_CRB: npt.NDArray[np.int64]
    volumes_ml: Mapping[str, float] | None


def draw_data(
    prepared: Prepared, out: Path, memory: Path | None = None, animations: bool = True
) -> None:
    """Write the pictures of `prepare`'s output to the folder `out`, the same bytes every time.

    `cases/NAME.png` is three planes of its channels through the classes' largest slices, NAME.gif
    goes through the slices; `contact_sheet_1.png` and so on are all cases, `intensities.png` is
    each channel before and after standardising, `volumes.png` and `volumes.csv` are the classes.
    A case's pictures are kept in `memory` for the next run (see `imaging.case_cache`).
    """
    cases, part, task = (
        list(prepared.cases.values()),
        partial(part_of, prepared.split),
        prepared.task,
    )
    most_C = np.max([case.mean_C + 4 * case.std_C for case in cases], axis=0)
    with replacing(out) as folder, progress(len(cases), "draw", "cases") as advance:
        (folder / "cases").mkdir(parents=True)
        seen, keys = [], []
        work = partial(
            _draw_one, folder / "cases", prepared.split, task, most_C, memory, animations
        )
        for key, one in _over(cases, work):
            keys.append(key)
            seen.append(one)
            advance(1)
        for n, start in enumerate(range(0, len(seen), _PER_SHEET), start=1):
            sheet = draw_contact_sheet(seen[start : start + _PER_SHEET], part, task)
            save_figure(sheet, folder / f"contact_sheet_{n}.png")
        save_figure(draw_intensities(seen, most_C, part, task), folder / "intensities.png")
        save_figure(draw_volumes(seen, part, task), folder / "volumes.png")
        (folder / "volumes.csv").write_bytes(_volume_table(seen, part, task))
    forget_others(memory, keys)


def part_of(split: Split, name: str) -> str:
    """`train`, `val` or `test`; empty where a case is in no part. A block's case is training's."""
    if name in split.training:
        return "train"
    if name in split.test:
        return "test"
    return "val" if name in {region.case for region in split.validation} else ""


def volumes_ml(case: PreparedCase, task: Task) -> dict[str, float] | None:
    """The volume of each class; None where a case is unlabelled."""
    if case.voxels_per_label is None:
        return None
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    counts = zip(task.class_names, case.voxels_per_label[1:], strict=True)
    return {name: n * voxel_ml for name, n in counts}


def _over(
    cases: Sequence[PreparedCase], work: Callable[[PreparedCase], tuple[str, _Seen]]
) -> Iterator[tuple[str, _Seen]]:
    pool = pool_of() if len(cases) > _FEW_CASES else None
    if pool is None:
        yield from map(work, cases)
        return
    with pool, killed_as_error():
        yield from pool.map(work, cases)


def _draw_one(
    folder: Path,
    split: Split,
    task: Task,
    most_C: npt.NDArray[np.float64],
    memory: Path | None,
    animations: bool,
    case: PreparedCase,
) -> tuple[str, _Seen]:
    """Write a case's pictures, or link what an earlier run kept."""
    kinds = ("png", "gif") if animations else ("png",)
    shown = task.model_dump(mode="json", include={"channels", "classes"})
    asked = [case.name, case.image_sha256, case.label_sha256, part_of(split, case.name), *kinds]
    key = key_of(__name__, *asked, shown, case.spacing_mm)
    files = [folder / f"{case.name}.{kind}" for kind in kinds]
    made(memory, key, files, partial(_write_pictures, folder, split, task, animations, case))
    return key, look_at(case, most_C, task)


def _write_pictures(
    folder: Path, split: Split, task: Task, animations: bool, case: PreparedCase
) -> dict[str, Any]:
    image_CIJK, labels_IJK = case.image_CIJK, known_labels(case.labels_IJK)
    ml, part = volumes_ml(case, task), part_of(split, case.name)
    title = f"{case.name}, {part or 'in no part of the split'}"
    heading = f"{title}: {sum(ml.values()):.1f} ml labelled" if ml else title
    start_vox = case.box.start_vox
    drawing = draw_case(
        image_CIJK, labels_IJK, case.spacing_mm, heading, first_vox=start_vox, task=task
    )
    save_figure(drawing, folder / f"{case.name}.png")
    if animations:
        write_gif(
            image_CIJK, labels_IJK, folder / f"{case.name}.gif", case.spacing_mm, title,
            first_k=start_vox[2], task=task,
        )  # fmt: skip
    return {}


def look_at(case: PreparedCase, most_C: npt.NDArray[np.float64], task: Task) -> _Seen:
    """A case's part in the pictures of the whole data set; `most_C` is where raw values end."""
    image_CIJK = case.image_CIJK
    labels_IJK, shown = (
        known_labels(case.labels_IJK),
        task.channel_names.index(shown_channels(task)[0]),
    )
    foreground = (image_CIJK != 0).any(axis=0)
    labelled = foreground if labels_IJK is None or not labels_IJK.any() else labels_IJK > 0
    k = int(labelled.sum(axis=(0, 1)).argmax())
    plane = cut(image_CIJK[shown], "axial", k)
    inside = cut(foreground, "axial", k)
    labels = np.zeros(plane.shape, np.uint8)
    if labels_IJK is not None:
        labels = np.ascontiguousarray(cut(labels_IJK, "axial", k))
    counts = []
    for channel, most, mean, std in zip(image_CIJK, most_C, case.mean_C, case.std_C, strict=True):
        values, wide = channel[foreground], std or 1.0
        standard = tuple(mean + wide * at for at in _STANDARD)
        counts.append([np.histogram(values, _BINS, of)[0] for of in ((0, most), standard)])
    window = grey_window(image_CIJK[shown], foreground)
    grey = greys(plane, inside, window).astype(np.float32)
    pixel = pixel_mm(case.spacing_mm, "axial")
    return _Seen(case.name, grey, labels, pixel, np.array(counts), volumes_ml(case, task))


def draw_contact_sheet(seen: Sequence[_Seen], part: Callable[[str], str], task: Task) -> Figure:
    """Each case's axial slice with the most labelled voxels, outlined, all at one scale."""
    columns = min(len(seen), 8)
    sizes_mm = [
        (one.grey.shape[1] * one.pixel_size_mm[0], one.grey.shape[0] * one.pixel_size_mm[1])
        for one in seen
    ]
    wide_mm, high_mm = (max(sizes) for sizes in zip(*sizes_mm, strict=True))
    n_rows = -(-len(seen) // columns)
    figure, panels = new_sheet(
        widths_mm=[wide_mm] * columns,
        heights_mm=[high_mm] * n_rows,
        title=f"{' to '.join(dict.fromkeys((seen[0].name, seen[-1].name)))}: most labelled voxels",
        row_names=[shown_channels(task)[0], *[""] * (n_rows - 1)],
        column_names=[""] * columns,
        legends=[class_legend(task)],
        note=CONVENTION,
    )
    for axes, one, (width_mm, height_mm) in zip(chain(*panels), seen, sizes_mm, strict=False):
        show_greys(axes, one.grey, one.pixel_size_mm)
        show_outlines(axes, one.labels, one.pixel_size_mm, task)
        axes.set_xlim((width_mm - wide_mm) / 2, (width_mm + wide_mm) / 2)
        axes.set_ylim((height_mm + high_mm) / 2, (height_mm - high_mm) / 2)
        mark_sides(axes, "axial")
        caption(axes, f"{one.name} {part(one.name)}".strip())
    return figure


def draw_intensities(
    seen: Sequence[_Seen],
    most_C: npt.NDArray[np.float64],
    part: Callable[[str], str],
    task: Task,
) -> Figure:
    """The foreground's raw and standardised values in each channel, a line a case."""
    wide_in, high_in = max(5.4, 0.52 + 2.42 * len(task.channels)), 4.9
    figure = new_figure(wide_in, high_in)
    add_title(figure, 0.2, high_in - 0.26, "Intensities over the foreground, a line a case")
    alpha = max(0.12, min(1.0, (16 / len(seen)) ** 0.5))
    rows = ("raw values", "standardised over the foreground: (value - mean) / std")
    for c, channel in enumerate(task.channel_names):
        for row, x_name in enumerate(rows):
            low_in = 2.7 if row == 0 else 0.5
            axes = figure.add_axes((
                (0.5 + 2.42 * c) / wide_in, low_in / high_in, 2.2 / wide_in, 1.45 / high_in
            ))  # fmt: skip
            dark_axes(axes)
            axes.set_yticks([])
            low, high = _STANDARD if row else (0.0, float(most_C[c]))
            edges = np.linspace(low, high, _BINS + 1)
            for one in seen:
                counts = one.counts_CRB[c, row]
                share = counts / max(1, counts.sum())
                colour = SPLIT_COLOURS.get(part(one.name), FAINT)
                axes.plot((edges[:-1] + edges[1:]) / 2, share, color=colour, lw=1.2, alpha=alpha)
            axes.set_xlim(low, high)
            axes.set_ylim(bottom=0)
            if row == 0:
                axes.set_title(channel, color=FOREGROUND, fontsize=9)
            if c == 0:
                axes.set_ylabel("share of voxels", color=FOREGROUND, fontsize=8.5)
                axes.set_xlabel(x_name, color=FAINT, fontsize=8.5, loc="left")
    numbers = Counter(part(one.name) for one in seen)
    entries = [
        (Line2D([], [], color=SPLIT_COLOURS.get(name, FAINT)), f"{name or 'in no part'} ({n})")
        for name, n in numbers.items()
    ]
    add_legend(figure, entries, loc="upper right", bbox_to_anchor=(0.99, 0.985), ncol=4)
    return figure


def draw_volumes(seen: Sequence[_Seen], part: Callable[[str], str], task: Task) -> Figure:
    """The volume of each class, and of the first region (the whole), a point a case."""
    labelled = [(part(one.name), one.volumes_ml) for one in seen if one.volumes_ml is not None]
    colours, names = colours_of(task), task.class_names
    groups = [Group(name, colours[name], [(p, ml[name]) for p, ml in labelled]) for name in names]
    for region in task.regions[:1]:
        parts = [names[label - 1] for label in region.labels]
        whole = [(p, sum(ml[name] for name in parts)) for p, ml in labelled]
        groups.append(Group(region.name, colours[region.name], whole))
    figure = new_figure(max(7.0, 1.2 * len(groups)), 4.4)
    add_title(figure, 0.2, 4.14, f"Volumes in {len(labelled)} labelled cases")
    axes = figure.add_axes((0.11, 0.16, 0.86, 0.66))
    draw_spread(axes, groups, "volume (ml)")
    axes.set_ylim(bottom=0)
    return figure


def _volume_table(seen: Sequence[_Seen], part: Callable[[str], str], task: Task) -> bytes:
    """The volumes as CSV; empty where a case is unlabelled."""
    rows = [
        {"case": one.name, "part": part(one.name)}
        | {f"{name}_ml": f"{ml:.3f}" for name, ml in (one.volumes_ml or {}).items()}
        for one in seen
    ]
    return csv_bytes(["case", "part", *(f"{name}_ml" for name in task.class_names)], rows)
