import pytest
from matplotlib.text import Text
from torch import nn

from gliotrail.report.figures import figure_array
from gliotrail.report.network import draw_network, draw_table, layer_rows, parameter_table
from gliotrail.segmentation.unet import UNet3d
from tests.segmentation.test_unet import LAYERS


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_the_courses_network_has_the_known_layers_and_833507_parameters():
    rows = layer_rows(UNet3d(2, 32))
    assert [(r.in_channels, r.out_channels, r.trainable) for r in rows] == LAYERS
    table = parameter_table(rows).split("\n")
    assert table[-2].split() == ["trainable", "833,507"]
    assert table[-1].split() == ["non-trainable", "0"]
    assert "Conv3d 3x3x3" in table[2]
    assert len({len(line) for line in table}) == 1  # all numbers end in one column


def test_frozen_layers_are_counted_apart_and_shared_ones_once():
    shared = nn.Linear(3, 2)
    network = nn.Sequential(shared, nn.Linear(2, 3), shared, nn.ReLU())
    shared.weight.requires_grad_(False)
    rows = layer_rows(network)
    assert [(r.trainable, r.frozen) for r in rows] == [(2, 6), (9, 0)]
    assert parameter_table(rows).split("\n")[-1].split() == ["non-trainable", "6"]


def test_parameters_outside_layers_are_not_forgotten():
    network = nn.ParameterList([nn.Linear(2, 2).weight])
    assert [(r.name, r.trainable) for r in layer_rows(network)] == [("(network)", 4)]
    assert parameter_table([]).split("\n")[-2].split() == ["trainable", "0"]


def test_the_table_is_drawn_within_its_figure():
    figure = draw_table(layer_rows(UNet3d(4, 32)), "network $_1$")
    figure_array(figure)
    assert all(text.get_window_extent().x1 <= figure.bbox.width for text in figure.texts)
    assert any("16,318,307" in text for text in texts(figure))


@pytest.mark.parametrize(
    ("depth", "total", "widest"),
    [(1, None, "64"), (2, "833,507", "128"), (3, "3,930,723", "256"), (4, "16,318,307", "512")],
)
def test_the_drawing_has_a_box_for_each_tensor_and_the_known_total(depth, total, widest):
    figure = draw_network(depth, 32, 4, 3)
    figure_array(figure)
    found = texts(figure)
    assert total is None or f"{total} trainable parameters, 0 other" in found
    boxes = [text for text in found if text.replace("\n+ ", "").isdigit()]
    assert len(boxes) == 3 * depth + 3 * (depth - 1) + 1
    assert boxes[0] == "4"
    assert widest in boxes
    assert boxes[-1] == "3"
    concatenated = [text for text in boxes if "+" in text]
    assert len(concatenated) == depth - 1
    assert depth == 1 or concatenated[-1] == "128\n+ 64"
