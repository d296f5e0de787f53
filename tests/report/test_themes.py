"""Pictures on a light ground, and what a picture looks like with colour blindness."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba_array
from matplotlib.text import Text

from gliotrail.report.colours import BACKGROUND, FAINT, FOREGROUND, rgb
from gliotrail.report.curves import draw_curves
from gliotrail.report.figures import figure_array, figure_png
from gliotrail.report.overlays import draw_prediction, pick_slices
from gliotrail.report.sweep_charts import Outcome, draw_rates
from gliotrail.report.themes import LIGHT_GROUND, in_theme

LOSSES = {"val/dice_mean_classes": [(1, 0.2), (2, 0.3)]} | {
    f"{part}/soft_dice_loss": [(n, 1 / (n + up)) for n in range(1, 60)]
    for part, up in (("train", 1), ("val", 2))
}


def is_at(pixels, colour):
    wanted = np.round(255 * np.array(rgb(colour)))
    return (np.abs(pixels.astype(int) - wanted) <= 2).all(axis=-1)


def charts():
    trials = [Outcome({"learning_rate": r, "patch_size": s}, "FINISHED", r * 100, 1, 1)
              for r, s in ((1e-3, "16x16x8"), (3e-3, "16x16x16"))]  # fmt: skip
    return {"curves": draw_curves(LOSSES, "a run"), "rates": draw_rates(trials, "a sweep")}


@pytest.mark.parametrize("name", ["curves", "rates"])
def test_a_chart_on_light_ground_has_nothing_of_the_dark_one_left(name):
    light = in_theme(charts()[name], "light")
    pixels = figure_array(light)
    assert is_at(pixels, LIGHT_GROUND[BACKGROUND]).mean() > 0.8
    assert is_at(pixels, LIGHT_GROUND[FOREGROUND]).any()  # its title
    lines = [line for axes in light.axes for line in axes.lines if line.get_linewidth() > 1]
    for old in (FOREGROUND, FAINT):
        for text in light.findobj(Text):
            assert tuple(to_rgba_array(text.get_color())[0, :3]) != pytest.approx(rgb(old))
    for line in (line for line in lines if line.get_marker() not in {"None", None, ""}):
        assert line.get_markerfacecolor() == line.get_color()
    # 3 to 1 is what WCAG 2.1 wants of lines
    assert min(contrast_to_white(line.get_color()) for line in lines) > 2.7


def contrast_to_white(colour):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
              for v in to_rgba_array(colour)[0, :3]]  # fmt: skip
    return 1.05 / (np.dot(linear, (0.2126, 0.7152, 0.0722)) + 0.05)


def test_brain_and_its_overlays_are_the_same_on_light_ground(crop, drawn):
    image_CIJK, labels_IJK = crop

    def draw():
        slices = pick_slices(labels_IJK, 2)
        return draw_prediction(image_CIJK, labels_IJK, labels_IJK, slices, (1, 1, 1), "a case")

    dark, light = drawn(draw()), drawn(in_theme(draw(), "light"))
    for n in range(len(dark.figure.axes)):
        np.testing.assert_array_equal(dark.panel(n), light.panel(n))
    whites = [patch for legend in light.figure.legends for patch in legend.get_patches()
              if to_rgba_array(patch.get_facecolor())[0].min() == 1]  # fmt: skip
    assert [to_rgba_array(patch.get_edgecolor())[0, :3].max() < 0.5 for patch in whites] == [True]
    assert is_at(light.pixels[:2], "#FFFFFF").all()
    assert is_at(dark.pixels[:2], BACKGROUND).all()


def test_dark_is_as_it_was():
    assert figure_png(in_theme(charts()["curves"], "dark")) == figure_png(charts()["curves"])
