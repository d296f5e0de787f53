"""Colours stay apart for everybody.

Colour blindness is simulated with the matrices of Machado, Oliveira and Fernandes, "A
Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG 15(6), 2009, at
severity 1, on linear RGB. Distances are CIE 1976 (CIELAB, D65): 2.3 is just noticeable.
"""

from itertools import combinations

import numpy as np
import pytest

from gliotrail.dataset.task import Channel, Class, Task
from gliotrail.report import colours
from gliotrail.report.themes import LIGHT_GROUND, LIGHT_LINES
from tests.support.brain import CLASS_COLOURS, CLASSES, REGION_COLOURS, REGIONS

VISION = {
    "usual": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip
SRGB_TO_XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip


def lab(rgb, vision):
    rgb = np.asarray(rgb, float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(VISION[vision] @ linear, 0, 1)
    xyz = SRGB_TO_XYZ @ seen / SRGB_TO_XYZ.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a, b, vision):
    return float(np.linalg.norm(lab(a, vision) - lab(b, vision)))


def over(colour, alpha, grey):
    return alpha * np.array(colours.rgb(colour)) + (1 - alpha) * grey


def test_the_distance_is_right_for_known_colours():
    assert lab((1, 1, 1), "usual") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab((1, 0, 0), "usual") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    # what deuteranopia is about
    green, brown = (0.2, 0.5, 0.1), (0.5, 0.36, 0.1)
    assert distance(green, brown, "usual") > 3 * distance(green, brown, "deuteranopia")


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(
    ("table", "least"),
    [
        (CLASS_COLOURS, 30),
        (REGION_COLOURS, 30),
        (colours.SPLIT_COLOURS, 25),
        (colours.STATUS_COLOURS, 25),
        (dict(enumerate(colours.SERIES_COLOURS)), 25),
    ],
)
def test_colours_of_one_table_are_apart_from_each_other_and_from_the_ground(table, least, vision):
    seen = [colours.rgb(colour) for colour in (*table.values(), colours.BACKGROUND)]
    assert min(distance(a, b, vision) for a, b in combinations(seen, 2)) > least


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(
    "table",
    [
        CLASS_COLOURS.values(),
        REGION_COLOURS.values(),
        colours.SPLIT_COLOURS.values(),
        colours.SERIES_COLOURS,
    ],
)
def test_lines_on_light_ground_are_apart_from_each_other_and_from_it(table, vision):
    light = [*(LIGHT_LINES[colour] for colour in table), LIGHT_GROUND[colours.BACKGROUND]]
    seen = [colours.rgb(colour) for colour in light]
    assert min(distance(a, b, vision) for a, b in combinations(seen, 2)) > 30


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("grey", [0.2, 0.4, 0.6])
def test_fills_are_apart_over_the_same_brain(grey, vision):
    fills = [over(colour, colours.FILL_ALPHA, grey) for colour in CLASS_COLOURS.values()]
    everything = [*fills, np.full(3, grey)]
    assert min(distance(a, b, vision) for a, b in combinations(everything, 2)) > 10


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("brightness", [0, 0.3, 0.6, 1])
def test_errors_are_apart_from_each_other_agreement_and_brain(brightness, vision):
    grey = brightness * colours.ERROR_GROUND
    table = dict(colours.ERROR_COLOURS)
    agreement = over(table.pop("agreement"), colours.AGREEMENT_ALPHA, grey)
    errors = [colours.rgb(colour) for colour in table.values()]
    everything = [*errors, agreement, np.full(3, grey)]
    assert min(distance(a, b, vision) for a, b in combinations(everything, 2)) > 18


def test_every_class_and_region_has_one_colour_and_the_shared_one_is_shared():
    assert tuple(CLASS_COLOURS) == CLASSES
    assert tuple(REGION_COLOURS) == tuple(REGIONS)
    assert REGION_COLOURS["ET"] == CLASS_COLOURS["enhancing"]
    assert colours.label_colours() == tuple(CLASS_COLOURS[name] for name in CLASSES)


def test_other_data_sets_take_the_palette_in_turn():
    classes = tuple(Class(name=f"organ_{n}", code=n) for n in range(1, 41))
    task = Task(channels=(Channel(name="CT"),), classes=classes)
    assert colours.label_colours(task)[:12] == colours.PALETTE
    assert len(colours.label_colours(task)) == 40
    assert colours.spoken("organ_3") == "organ 3"
