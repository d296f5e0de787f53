import itertools
import math

import numpy as np
import pytest

from gliotrail.report.colours import STATUS_COLOURS
from gliotrail.report.figures import figure_array, figure_png
from gliotrail.report.sweep_charts import (
    Outcome,
    draw_budget,
    draw_parallel,
    draw_rates,
    order,
    scale_of,
)

SIZES = ["32x32x32", "48x48x16", "96x96x96"]


def trial(rate=1e-3, size="32x32x32", status="FINISHED", score=0.5, epochs=9.0, **more):
    values = {"learning_rate": rate, "patch_size": size, **more}
    return Outcome(values, status, score, int(1e6 * epochs), epochs)


def many(count):
    """Some of each kind, the same every time."""
    kinds = [("FINISHED", 0.6, 9), ("STOPPED", 0.3, 1), ("STOPPED", 0.4, 3), ("FAILED", None, 0.5)]
    return [
        trial(10 ** (-4 + 2 * n / count), SIZES[n % 3], status, score, epochs, loss="ab"[n % 2])
        for n in range(count)
        for status, score, epochs in [kinds[n % 4]]
    ]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_learning_rates_are_placed_by_their_logarithm_and_other_numbers_are_not():
    values = [1e-4, 1e-3, 1e-2]
    assert scale_of(values, logarithmic=True).places == pytest.approx([0, 0.5, 1])
    assert scale_of(values).places == pytest.approx([0, 0.0909, 1], abs=1e-4)
    assert scale_of([0, 1], logarithmic=True).places == [0, 1]
    assert scale_of([3, 3]).places == [0.5, 0.5]


def test_a_number_axis_names_its_values_or_even_steps_between_its_ends():
    assert [name for _, name in scale_of([4, 2, 4]).ticks] == ["2", "4"]
    values = [10 ** (-4 + n / 50) for n in range(101)]
    ticks = scale_of(values, logarithmic=True).ticks
    assert [at for at, _ in ticks] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert [name for _, name in ticks][::2] == ["0.0001", "0.001", "0.01"]


def test_sizes_are_in_the_order_of_their_voxels():
    assert sorted(["96x96x96", "128x8x8", "48x48x16"], key=order) == [
        "128x8x8",
        "48x48x16",
        "96x96x96",
    ]
    scale = scale_of(["96x96x96", "32x32x32", "48x48x16"])
    assert scale.places == [1, 0, 0.5]
    assert [name for _, name in scale_of([f"{n}x8x8" for n in range(100)]).ticks][:2] == [
        "0x8x8",
        "13x8x8",
    ]


@pytest.mark.parametrize("count", [2, 1000])
@pytest.mark.parametrize(
    "draw",
    [
        lambda trials: draw_parallel(trials, "sweep"),
        lambda trials: draw_rates(trials, "sweep"),
        lambda trials: draw_budget(trials, [1, 3, 9], "sweep"),
    ],
    ids=["parallel", "rates", "budget"],
)
def test_a_picture_of_few_or_many_has_a_legend_and_is_small(draw, count):
    figure = draw(many(count))
    assert legend(figure)
    assert len(figure_png(figure)) < 150_000


@pytest.mark.parametrize("status", STATUS_COLOURS)
def test_one_trial_of_any_kind_can_be_drawn(status):
    one = [trial(status=status, score=None if status == "FAILED" else 0.5, epochs=0)]
    for figure in (draw_parallel(one, "a"), draw_rates(one, "b"), draw_budget(one, [1], "c")):
        figure_array(figure)


def test_a_parallel_line_goes_through_each_of_a_trials_values_to_its_dice():
    trials = [trial(1e-4, SIZES[0], score=0.2), trial(1e-2, SIZES[2], score=0.8, status="STOPPED")]
    figure = draw_parallel([*trials, trial(1e-3, SIZES[1], "FAILED", None, 0)], "sweep")
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["learning_rate", "patch_size", "Dice"]
    lines = {
        tuple(round(float(y), 6) for _, y in segment)
        for collection in axes.collections
        for segment in collection.get_segments()
    }
    assert lines == {(0, 0, 0), (1, 1, 1), (0.5, 0.5, -0.1)}
    assert "none" in texts(figure)
    assert legend(figure) == ["failed", "stopped early", "best finished, Dice 0.200"]


def test_what_did_not_finish_is_drawn_otherwise():
    trials = [trial(), trial(2e-3, status="STOPPED"), trial(4e-3, status="FAILED", score=None)]
    figure = draw_parallel(trials, "sweep")
    dashes = [str(c.get_linestyle()) for c in figure.axes[0].collections[:3]]
    assert len(set(dashes)) == 3
    figure = draw_rates(trials, "sweep")
    assert figure.axes[0].get_xscale() == "log"
    full, hollow, cross = ([line for line in figure.axes[0].lines if line.get_xdata()[0] == rate]
                           for rate in (1e-3, 2e-3, 4e-3))  # fmt: skip
    assert full[0].get_markerfacecolor() != "none"
    assert hollow[0].get_markerfacecolor() == "none"
    assert cross[0].get_marker() == "x"
    assert legend(figure) == ["32x32x32", "stopped early", "failed"]


def test_each_size_has_a_look_of_its_own():
    sizes = [f"{n}x8x8" for n in range(8, 48, 2)]
    figure = draw_rates([trial(size=size) for size in sizes], "sweep")
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines
             if len(line.get_xdata())}  # fmt: skip
    assert len(looks) == len(sizes) == 20


def test_the_bars_hold_all_that_was_seen_once():
    trials = many(40)
    figure = draw_budget(trials, [1, 3, 9], "sweep")
    bars = [bar for group in figure.axes[0].containers for bar in group]
    seen = sum(bar.get_height() for bar in bars)
    assert math.isclose(seen, sum(trial.voxels for trial in trials) / 1e6)
    assert texts(figure) == ["40 trials", "20 trials", "10 trials"]
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert names == ["epoch 1", "epochs 2 to 3", "epochs 4 to 9"]


def test_the_same_sweep_is_drawn_as_the_same_bytes():
    first, second = (figure_png(draw_parallel(many(12), "sweep")) for _ in range(2))
    assert first == second


def test_few_rates_have_their_ticks_where_they_are_and_no_label_prints_over_another():
    for rates in (
        [1e-4, 3e-4],
        [1e-4],
        [1e-4, 1.05e-4, 2e-4, 1e-2],
        list(np.geomspace(1e-5, 1, 8)),
    ):
        figure = draw_rates([trial(rate, score=0.5) for rate in rates], "sweep")
        figure_array(figure)
        axes = figure.axes[0]
        shown = [text for text in axes.get_xticklabels() if text.get_text()]
        assert {float(text.get_text()) for text in shown} <= {
            float(f"{rate:.3g}") for rate in rates
        }
        assert float(shown[0].get_text()) == float(f"{min(rates):.3g}")
        boxes = sorted((text.get_window_extent() for text in shown), key=lambda box: box.x0)
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
