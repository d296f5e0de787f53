import csv
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image

from gliotrail.dataset.brats import BRATS
from gliotrail.imaging.patch import patch
from gliotrail.report.data_pictures import (
    draw_data,
    draw_intensities,
    draw_volumes,
    look_at,
    part_of,
)
from gliotrail.report.patch_sheet import draw_sample
from tests.support.brain import CLASSES
from tests.support.scans import CASES, patch_section, snapshot


@pytest.fixture(scope="module")
def drawn_data(prepared_crops, tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "prepare"
    draw_data(prepared_crops, out)
    return out


def test_every_case_has_a_picture_and_an_animation_and_the_data_set_a_sheet(drawn_data):
    expected = {f"cases/{name}.{kind}" for name in CASES for kind in ("png", "gif")}
    expected |= {"contact_sheet_1.png", "intensities.png", "volumes.png", "volumes.csv"}
    assert set(snapshot(drawn_data)) == expected
    for path in drawn_data.rglob("*.png"):
        with Image.open(path) as image:
            assert image.width >= 700
            assert not set(image.info) & {"Creation Time", "Software", "date"}


def test_they_are_the_same_bytes_each_time(prepared_crops, drawn_data, tmp_path):
    draw_data(prepared_crops, tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(drawn_data)


def test_volumes_are_the_labels_voxels_in_ml(prepared_crops, drawn_data):
    rows = list(csv.DictReader((drawn_data / "volumes.csv").open()))
    assert [(row["case"], row["part"]) for row in rows] == [(CASES[0], "train"), (CASES[1], "test")]
    for row in rows:
        case = prepared_crops.cases[row["case"]]
        assert set(case.spacing_mm) == {1.0}  # so 1,000 voxels are a ml
        for label, name in enumerate(CLASSES, start=1):
            voxels = (case.labels_IJK == label).sum()
            assert float(row[f"{name}_ml"]) == pytest.approx(voxels / 1000, abs=1e-3)


def test_standardised_histograms_are_centred_and_raw_ones_are_not(prepared_crops):
    case = prepared_crops.cases[CASES[0]]
    most_C = case.mean_C + 4 * case.std_C
    seen = look_at(case, most_C, BRATS)
    raw, standard = seen.counts_CRB[0]
    assert raw.sum() >= standard.sum() > 0.99 * raw.sum()
    centre = (standard * (np.arange(64) - 25.1)).sum() / standard.sum() / 6.4  # -4 to 6 in 64
    assert abs(centre) < 0.1
    figure = draw_intensities([seen], most_C, lambda name: "train", BRATS)
    assert len(figure.axes) == 8
    assert all(len(axes.lines) == 1 for axes in figure.axes)


def test_an_unlabelled_case_counts_in_no_volume(prepared_crops):
    case = prepared_crops.cases[CASES[0]]
    seen = look_at(case, case.mean_C + 4 * case.std_C, BRATS)
    figure = draw_volumes([seen, seen._replace(volumes_ml=None)], lambda name: "", BRATS)
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert [name.split("n = ")[1] for name in names] == ["1"] * 4


def test_a_case_is_in_the_part_that_the_split_says(prepared_crops):
    parts: Mapping[str, str] = {name: part_of(prepared_crops.split, name) for name in CASES}
    assert parts == {CASES[0]: "train", CASES[1]: "test"}
    assert part_of(prepared_crops.split, "nobody") == ""


def test_a_sheet_of_patches_is_small_and_the_same_each_time(prepared_crops, tmp_path):
    index = patch(patch_section(per_case=14), prepared_crops, (16, 16, 8), tmp_path)
    for name in "ab":
        draw_sample(prepared_crops, index, tmp_path / name)
    one, other = ((tmp_path / name / "16x16x8.png").read_bytes() for name in "ab")
    assert one == other
    assert len(one) < 150_000
