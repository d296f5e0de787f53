from itertools import pairwise

import pytest

from gliotrail.report.figures import figure_array, figure_png, new_figure
from gliotrail.report.spread import Group, draw_spread


def drawn(*groups):
    figure = new_figure(6, 4)
    axes = figure.add_axes((0.1, 0.2, 0.85, 0.6))
    draw_spread(axes, groups, "Dice (0 to 1)")
    return figure, axes


def group(*values, name="edema", part="test"):
    return Group(name, "#56B4E9", [(part, value) for value in values])


def points(axes):
    return [line for line in axes.lines if line.get_marker() not in {"None", "", None}]


def test_each_value_is_a_point_at_its_height():
    _, axes = drawn(group(0.2, 0.4), group(0.9, name="$x_1$"))
    assert [line.get_ydata()[0] for line in points(axes)] == [0.2, 0.4, 0.9]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["edema\nn = 2", "$x 1$\nn = 1"]


@pytest.mark.parametrize(("n", "boxes"), [(4, 0), (5, 1)])
def test_a_box_needs_five_values(n, boxes):
    _, axes = drawn(group(*(k / 10 for k in range(n))))
    assert len(axes.lines) - len(points(axes)) == 6 * boxes  # box, 2 whiskers, 2 caps, median


def test_a_group_without_values_keeps_its_place_and_pictures_are_the_same_each_time():
    one, other = (drawn(group(), group(*(k / 9 for k in range(9)))) for _ in range(2))
    assert one[1].get_xticklabels()[0].get_text() == "edema\nn = 0"
    assert figure_png(one[0]) == figure_png(other[0])


def test_parts_have_markers_and_a_legend_where_there_are_several():
    _, axes = drawn(group(0.1), group(0.2, part="train"))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "test"]
    assert len({line.get_marker() for line in points(axes)}) == 2
    assert drawn(group(0.1))[1].get_legend() is None


@pytest.mark.parametrize(("groups", "upright"), [(3, False), (6, False), (13, True)])
def test_names_of_few_and_many_groups_never_print_over_each_other(groups, upright):
    figure, axes = drawn(*(group(0.5, name=f"non_enhancing_{n}") for n in range(groups)))
    figure_array(figure)
    names = axes.get_xticklabels()
    boxes = [name.get_window_extent() for name in names]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
    assert {name.get_rotation() == 90 for name in names} == {upright}
    assert min(name.get_fontsize() for name in names) >= 6
