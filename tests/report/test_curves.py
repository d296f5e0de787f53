import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliotrail.report.colours import SPLIT_COLOURS
from gliotrail.report.curves import axis_name, draw_curves, parse_key, smoothed
from gliotrail.report.figures import figure_array, figure_png
from tests.support.brain import CLASS_COLOURS, REGION_COLOURS

STEPS = range(1, 101)


def curve(first=0.9, last=0.2):
    return [(step, first + (last - first) * step / 100) for step in STEPS]


def panels(figure):
    return {axes.get_ylabel(): axes for axes in figure.axes}


def legend_names(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("val/dice_non_enhancing", ("val", "dice", "non_enhancing", "class")),
        ("val/dice_enhancing", ("val", "dice", "enhancing", "class")),
        ("test/hd95_mm_ET", ("test", "hd95_mm", "ET", "region")),
        ("val/dice_mean_regions", ("val", "dice", "mean_regions", "region")),
        ("train/soft_dice_loss", ("train", "soft_dice_loss", "", "")),
        ("odd", ("", "odd", "", "")),
    ],
)
def test_a_key_is_taken_apart(key, parts):
    assert parse_key(key) == parts


@pytest.mark.parametrize(
    ("measure", "family", "name"),
    [
        ("dice", "class", "Dice per class (0 to 1)"),
        ("soft_dice_loss", "", "soft Dice loss (no unit)"),
        ("hd95_mm", "region", "HD95 per region (mm)"),
        ("voxels_per_s", "", "voxels (1/s)"),
        ("epoch_s", "", "epoch (s)"),
        ("data_wait_share", "", "data wait share (0 to 1)"),
    ],
)
def test_an_axis_is_named_with_its_unit(measure, family, name):
    assert axis_name(measure, family) == name


@given(
    st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), min_size=1, max_size=30), st.integers(1, 12)
)
def test_smoothing_is_the_mean_of_the_neighbours_that_are_there(values, window):
    values, half = np.array(values), window // 2
    got = smoothed(values, window)
    for n, value in enumerate(values):
        near = values[max(0, n - half) : n + half + 1]
        wanted = np.nan if np.isnan(value) else np.nanmean(near)
        assert got[n] == pytest.approx(wanted, nan_ok=True, abs=1e-9)


def test_loss_is_thin_and_smoothed_in_training_and_marked_in_validation():
    loss = {"train/soft_dice_loss": curve(), "val/soft_dice_loss": curve()[9::10]}
    (axes,) = draw_curves(loss, "run").axes
    thin, thick, marked = axes.lines
    assert thin.get_linewidth() < 1 < thick.get_linewidth()
    assert (thin.get_color(), marked.get_color()) == (SPLIT_COLOURS["train"], SPLIT_COLOURS["val"])
    assert marked.get_marker() == "o"
    assert legend_names(axes) == ["train", "val"]
    assert axes.get_xlabel() == "step"
    assert axes.get_ylim()[0] == 0


def test_measures_have_a_panel_each_for_classes_and_regions_in_their_colours():
    subjects = [*CLASS_COLOURS, *REGION_COLOURS]
    points = {
        f"val/{measure}_{name}": curve(0.1, 0.8)[9::10]
        for measure in ("dice", "sensitivity", "specificity")
        for name in subjects
    } | {"val/dice_mean_classes": curve()}
    by_name = panels(draw_curves(points, "run", x_name="epoch"))
    assert list(by_name) == [
        f"{measure} per {family} (0 to 1)"
        for measure in ("Dice", "sensitivity", "specificity")
        for family in ("class", "region")
    ]
    per_class = by_name["Dice per class (0 to 1)"]
    assert [line.get_color() for line in per_class.lines[:3]] == list(CLASS_COLOURS.values())
    assert legend_names(per_class) == ["edema", "non-enhancing", "enhancing", "mean"]
    assert per_class.get_ylim() == (0, 1)
    per_region = by_name["sensitivity per region (0 to 1)"]
    assert [line.get_color() for line in per_region.lines] == list(REGION_COLOURS.values())
    assert per_region.get_xlabel() == "epoch"


@pytest.mark.parametrize(
    ("measure", "values", "scale"),
    [
        ("grad_norm", [1e-3, 0.5, 1.0], "log"),
        ("grad_norm", [0.0, 0.5, 1.0], "linear"),
        ("grad_norm", [0.4, 0.5, 1.0], "linear"),
        ("learning_rate", [1e-8, 1e-3, 1e-6], "linear"),
        ("soft_dice_loss", [math.nan, math.inf], "linear"),
    ],
)
def test_the_axis_is_logarithmic_where_that_fits(measure, values, scale):
    figure = draw_curves({f"train/{measure}": list(enumerate(values))}, "run")
    assert figure.axes[0].get_yscale() == scale
    figure_array(figure)


def test_a_learning_rate_is_not_smoothed():
    (axes,) = draw_curves({"train/learning_rate": curve(1e-3, 0)}, "run").axes
    (line,) = axes.lines
    assert line.get_ydata() == pytest.approx([value for _, value in curve(1e-3, 0)])


def test_an_undefined_value_leaves_a_gap():
    points = {"val/dice_edema": [(1, 0.5), (2, math.nan), (3, 0.6), (4, math.inf)]}
    (axes,) = draw_curves(points, "run").axes
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False, True]


def test_nothing_or_strange_keys_draw_without_failing():
    assert not draw_curves({}, "run").axes
    assert not draw_curves({"train/soft_dice_loss": []}, "run").axes
    figure = draw_curves({"$a/b_$<": [(0, 1.0)], "_x": [(0, -1.0), (1, 2.0)]}, "$\\frac{")
    figure_array(figure)
    assert {name for axes in figure.axes for name in legend_names(axes)} == {"$a", "_x"}


def test_curves_are_the_same_bytes_every_time_and_small():
    points = {"train/soft_dice_loss": curve(), "val/dice_WT": curve()}
    first, second = (figure_png(draw_curves(points, "run")) for _ in range(2))
    assert first == second
    assert len(first) < 100_000
