import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gliotrail.errors import DataError
from gliotrail.report import overlays
from gliotrail.report.colours import BACKGROUND, ERROR_COLOURS, FOREGROUND, rgb
from gliotrail.report.figures import figure_png
from tests.support.brain import CLASS_COLOURS

SPACING_MM = (1.0, 1.0, 1.0)
SHAPE = (20, 24, 3)
LABELS = arrays.arrays(np.uint8, (3, 4, 9), elements=st.integers(0, 3))


def noise(shape=SHAPE, low=100, high=110):
    """An image without background, in dull grey."""
    return np.random.default_rng(0).uniform(low, high, (4, *shape))


def block(i, j, size=3, shape=SHAPE, label=1):
    labels = np.zeros(shape, np.uint8)
    labels[i : i + size, j : j + size, 1] = label
    return labels


def draw(labels, predicted, spacing_mm=SPACING_MM, image=None):
    image = noise(labels.shape) if image is None else image
    return overlays.draw_prediction(image, labels, predicted, [1], spacing_mm, "case")


# --- which slices ---------------------------------------------------------------------------------


@given(LABELS, st.integers(1, 12))
def test_picked_slices_are_distinct_ascending_and_as_many_as_asked(labels, n):
    slices = overlays.pick_slices(labels, n)
    assert list(slices) == sorted(set(slices))
    assert len(slices) == min(n, labels.shape[2])
    assert set(slices) <= set(range(labels.shape[2]))
    assert slices == overlays.pick_slices(labels.copy(order="F"), n)


@given(LABELS)
def test_picked_slices_hold_the_largest_of_each_class(labels):
    slices = overlays.pick_slices(labels, 3)
    for label in (1, 2, 3):
        areas = (labels == label).sum(axis=(0, 1))
        assert not areas.any() or areas[list(slices)].max() == areas.max()


def test_one_slice_is_the_enhancing_tumours_largest():
    labels = np.zeros((4, 4, 9), np.uint8)
    labels[:, :, 2], labels[0, 0, 6] = 1, 3
    assert overlays.pick_slices(labels, 1) == (6,)


def test_without_a_tumour_slices_spread_over_the_volume():
    assert overlays.pick_slices(np.zeros((2, 2, 11), np.uint8), 3) == (2, 5, 8)


def test_slices_of_a_real_tumour_are_spread_over_it(crop):
    labels = crop[1]
    slices = overlays.pick_slices(labels, 6)
    with_tumour = np.flatnonzero(labels.any(axis=(0, 1)))
    assert np.isin(slices, with_tumour).all()
    assert np.diff(slices).max() <= len(with_tumour) / 2


# --- a prediction against its truth ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "found", "name"),
    [
        (0, 1, "false_positive"),
        (0, 3, "false_positive"),
        (2, 0, "false_negative"),
        (2, 3, "wrong_class"),
    ],
)
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 1.0, 5.0)])
def test_an_error_is_drawn_in_its_colour_at_its_place_and_size(
    truth, found, name, spacing_mm, drawn, find
):
    i, j, size = 4, 15, 3
    labels, predicted = block(i, j, size, label=truth), block(i, j, size, label=found)
    panel = drawn(draw(labels, predicted, spacing_mm)).panel(2)
    rows, columns = find(panel, ERROR_COLOURS[name])
    # the letters R and L are white too, above everything in the panel's top corners
    inside = (rows > 0.1) & (columns > 0.1) & (columns < 0.9)
    rows, columns = rows[inside], columns[inside]
    off = 0.012  # a pixel
    assert columns.min() == pytest.approx(1 - (i + size) / SHAPE[0], abs=off)
    assert columns.max() == pytest.approx(1 - i / SHAPE[0], abs=off)
    assert rows.min() == pytest.approx(1 - (j + size) / SHAPE[1], abs=off)
    assert rows.max() == pytest.approx(1 - j / SHAPE[1], abs=off)
    others = [colour for other, colour in ERROR_COLOURS.items() if other != name]
    assert not any(find(panel[20:], colour)[0].size for colour in others)


def test_agreement_is_drawn_over_brain_and_is_no_error(drawn, find):
    labels = block(4, 15)
    panel = drawn(draw(labels, labels)).panel(2)
    for name in ("wrong_class", "false_positive", "false_negative"):
        assert not find(panel[20:], ERROR_COLOURS[name])[0].size
    green = panel[..., 1].astype(int) - panel[..., 0] > 25
    share = 9 / (SHAPE[0] * SHAPE[1])
    assert green.mean() == pytest.approx(share, rel=0.15)


def test_a_false_positive_outside_the_brain_is_not_cut_off(drawn, find):
    image = np.zeros((4, *SHAPE))
    image[:, 5:15, 5:15] = noise((10, 10, 3))
    found = block(17, 20)
    rows, columns = find(
        drawn(draw(np.zeros_like(found), found, image=image)).panel(2),
        ERROR_COLOURS["false_positive"],
    )
    assert rows.size > 50
    assert columns.max() < 0.3  # far on the patient's right is left in the picture


def test_truth_is_an_outline_and_prediction_a_fill(drawn, find):
    empty, labels = np.zeros(SHAPE, np.uint8), block(6, 8, 9, label=3)
    yellow = CLASS_COLOURS["enhancing"]
    outline, filled = drawn(draw(labels, empty)).panel(0), drawn(draw(empty, labels)).panel(0)
    assert find(outline, yellow)[0].size > 50
    assert not find(filled, yellow)[0].size  # a fill lets the brain shine through
    yellowish = [(p[..., 0].astype(int) - p[..., 2] > 40).mean() for p in (outline, filled)]
    assert yellowish[0] < 0.5 * yellowish[1]
    assert yellowish[1] == pytest.approx(81 / (20 * 24), rel=0.1)


def test_of_two_classes_that_touch_each_is_outlined_on_its_own_side(drawn):
    labels = block(4, 8, 6, label=1) + block(10, 8, 6, label=2)
    panel = drawn(draw(labels, np.zeros_like(labels))).panel(0).astype(int)
    border = 1 - 10 / SHAPE[0]
    blueness = panel[..., 2] - panel[..., 0]
    for bluish, side in ((blueness > 60, 1), (blueness < -60, -1)):  # small i is right
        columns = np.nonzero(bluish)[1] / panel.shape[1]
        assert columns.size > 50
        assert (side * (columns - border) > -0.005).all()  # but for a pixel's edge
        assert np.abs(columns - border).min() < 0.5 / SHAPE[0]


def test_the_patients_left_is_drawn_on_the_right_and_the_front_on_top(drawn):
    image = noise()
    image[:, 2:6, 18:22] = 1000  # small i is left, large j is front
    empty = np.zeros(SHAPE, np.uint8)
    picture = drawn(draw(empty, empty, image=image))
    rows, columns = np.nonzero(picture.panel(0)[25:-25, 25:-25, 0] > 200)
    high, wide = picture.panel(0).shape[:2]
    assert np.mean((columns + 25) / wide) == pytest.approx(1 - 4 / SHAPE[0], abs=0.02)
    assert np.mean((rows + 25) / high) == pytest.approx(1 - 20 / SHAPE[1], abs=0.02)
    letters = {t.get_text(): t.get_position()[0] for t in picture.figure.axes[0].texts}
    assert letters["R"] < 0.5 < letters["L"]
    assert any("left (L) on the right" in text for text in picture.texts())


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 1.2, 6.0), (0.5, 0.9, 3.0)])
def test_the_scale_bar_is_as_long_as_it_says(spacing_mm, drawn, find, run_px):
    size = 10
    found = block(5, 7, size)
    picture = drawn(draw(np.zeros_like(found), found, spacing_mm))
    panel = picture.panel(2)
    rows, columns = find(panel, ERROR_COLOURS["false_positive"])
    px_per_mm = {
        "i": np.ptp(columns) * panel.shape[1] / (size * spacing_mm[0]),
        "j": np.ptp(rows) * panel.shape[0] / (size * spacing_mm[1]),
    }
    bar_mm = next(float(t.split()[0]) for t in picture.texts() if re.fullmatch(r"\d+ mm", t))
    white = np.round(255 * np.array(rgb(FOREGROUND)))
    longest = max(run_px((row == white).all(axis=-1)) for row in picture.pixels[-120:, :110])
    assert longest > 30
    assert bar_mm * px_per_mm["i"] == pytest.approx(longest, abs=3)
    assert bar_mm * px_per_mm["j"] == pytest.approx(longest, abs=3)


def test_standardising_does_not_change_the_picture(crop, drawn):
    image, labels = crop
    raw = image.astype(np.float64)
    mean, std = raw.mean(axis=(1, 2, 3)), raw.std(axis=(1, 2, 3))
    shape = (-1, 1, 1, 1)
    standardised = (raw - mean.reshape(shape)) / std.reshape(shape)
    pictures = [
        drawn(
            overlays.draw_prediction(i, labels, np.roll(labels, 2, 0), [5], SPACING_MM, "x")
        ).pixels.astype(int)
        for i in (raw, standardised)
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_block_of_a_scan_names_its_slices_as_the_scan_does(crop, drawn):
    image, labels = crop
    figure = overlays.draw_prediction(
        image, labels, labels, [2, 5], SPACING_MM, "x", first_k=60, shown=("T2w",)
    )
    assert {"axial k = 62", "axial k = 65", "T2w"} <= set(drawn(figure).texts())
    assert len(figure.axes) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels_IJK": np.zeros((2, 2, 2))}, "label shape: wanted (20, 24, 3), got (2, 2, 2)"),
        ({"predicted_IJK": np.zeros((2, 2, 2))}, "label shape: wanted (20, 24, 3), got (2, 2, 2)"),
        ({"image_CIJK": np.zeros((20, 24, 3))}, "image shape: wanted (4, I, J, K)"),
        ({"slices_k": [1, 3]}, "case: slices: wanted some of 0 to 2, got [3]"),
        ({"slices_k": []}, "case: slices: wanted some of 0 to 2, got none"),
        (
            {"shown": ("FLAIR", "T3")},
            "channels shown: wanted some of FLAIR, T1w,",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(change, said):
    values = {
        "image_CIJK": noise(),
        "labels_IJK": block(1, 1),
        "predicted_IJK": block(1, 1),
        "slices_k": [1],
        "spacing_mm": SPACING_MM,
        "title": "case",
    }
    with pytest.raises(DataError, match=re.escape(said)):
        overlays.draw_prediction(**(values | change))


# --- a case ---------------------------------------------------------------------------------------


def test_a_case_shows_three_planes_of_four_channels_where_the_tumour_is_largest(crop, drawn):
    image, labels = crop
    figure = overlays.draw_case(image, labels, SPACING_MM, "BRATS")
    assert len(figure.axes) == 12
    at = overlays.centre_voxel(labels, image)
    for axis in range(3):
        areas = (labels > 0).sum(axis=tuple(a for a in range(3) if a != axis))
        assert areas[at[axis]] == areas.max()
    wanted = {f"axial\nk = {at[2]}", f"coronal\nj = {at[1]}", f"sagittal\ni = {at[0]}"}
    assert wanted <= set(drawn(figure).texts())


def test_a_cases_planes_meet_in_the_voxel_that_is_asked_for(drawn):
    image = noise((20, 24, 16))
    image[:, 3, 19, 11] = 5000
    figure = overlays.draw_case(image, None, (1.0, 1.0, 2.0), "x", at_vox=(3, 19, 11))
    picture = drawn(figure)
    shares = {0: (1 - 3.5 / 20, 1 - 19.5 / 24), 4: (1 - 3.5 / 20, 1 - 11.5 / 16),
              8: (1 - 19.5 / 24, 1 - 11.5 / 16)}  # fmt: skip
    for n, (across, down) in shares.items():
        axes = figure.axes[n]
        x = axes.get_xlim()[1] * across
        y = axes.get_ylim()[0] * down
        column, row = axes.transData.transform((x, y))
        assert picture.pixels[round(picture.pixels.shape[0] - row), round(column), 0] > 200
        lines = [line.get_xydata() for line in axes.lines]
        assert lines[0][0, 0] == pytest.approx(x)
        assert lines[1][0, 1] == pytest.approx(y)


def test_a_voxel_outside_the_brain_is_shown_too_and_one_outside_the_scan_refused():
    image = np.zeros((4, *SHAPE))
    image[:, 8:15, 8:15] = noise((7, 7, 3))
    figure = overlays.draw_case(image, None, SPACING_MM, "x", at_vox=(1, 20, 0))
    axes = figure.axes[0]
    assert (axes.lines[0].get_xdata()[0], axes.lines[1].get_ydata()[0]) == (17 - 0.5, 3 + 0.5)
    told = "x: voxel: wanted 5 to 24, 0 to 23, 9 to 11, got (6, 20, 8)"
    with pytest.raises(DataError, match=re.escape(told)):
        overlays.draw_case(image, None, SPACING_MM, "x", at_vox=(1, 20, -1), first_vox=(5, 0, 9))


def test_a_case_without_labels_or_tumour_is_drawn(crop, drawn):
    image, labels = crop
    for nothing in (None, np.zeros_like(labels)):
        figure = overlays.draw_case(image, nothing, SPACING_MM, "x")
        assert not any(axes.collections for axes in figure.axes)


def test_a_random_slice_is_the_same_for_a_seed_and_lies_in_the_brain(slab):
    image = slab[0][:, ::4, ::4, ::4]
    voxels = {overlays.random_voxel(image, seed) for seed in range(20)}
    assert overlays.random_voxel(image, 3) == overlays.random_voxel(image, 3)
    assert len(voxels) > 15
    assert all(image[(slice(None), *voxel)].any() for voxel in voxels)


# --- patches --------------------------------------------------------------------------------------


def test_a_sheet_shows_each_patchs_middle_slice_with_its_caption(crop, drawn, find):
    image, labels = crop
    corners = [(0, 0), (16, 16), (32, 32), (8, 24), (24, 8)]
    patches = [
        (image[:, i : i + 32, j : j + 32, :8], labels[i : i + 32, j : j + 32, :8], f"${i}_{j}<")
        for i, j in corners
    ]
    figure = overlays.draw_patches(patches, SPACING_MM, "32x32x8", columns=3)
    picture = drawn(figure)
    assert len(figure.axes) == 6
    assert {caption for *_, caption in patches} <= set(picture.texts())
    for n, (_, patch_labels, _) in enumerate(patches):
        edema = (patch_labels[..., 4] == 1).sum()
        drawn_px = find(picture.panel(n), CLASS_COLOURS["edema"])[0].size
        assert drawn_px == 0 if edema == 0 else drawn_px > 10 or not 10 < edema < 1000
    assert find(picture.panel(5), BACKGROUND)[0].size == picture.panel(5)[..., 0].size


def test_patches_of_two_sizes_on_one_sheet_are_refused(crop):
    image, labels = crop
    patches = [(image[..., :n], labels[..., :n], "x") for n in (8, 4)]
    with pytest.raises(DataError, match="label shape"):
        overlays.draw_patches(patches, SPACING_MM, "x")
    with pytest.raises(DataError, match="patches: wanted at least 1, got 0"):
        overlays.draw_patches([], SPACING_MM, "48x48x16")


# --- files ----------------------------------------------------------------------------------------


def test_real_pictures_are_small_and_the_same_bytes_every_time(slab):
    image, labels = slab
    slices = overlays.pick_slices(labels, 4)
    wrong = np.roll(labels, (5, -4), (0, 1))
    prediction, again = (
        figure_png(overlays.draw_prediction(image, labels, wrong, slices, SPACING_MM, "x"))
        for _ in range(2)
    )
    case = figure_png(overlays.draw_case(image, labels, SPACING_MM, "x"))
    assert prediction == again
    assert 50_000 < len(prediction) < 300_000
    assert 50_000 < len(case) < 300_000
