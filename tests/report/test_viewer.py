"""The viewer's page: what is in it, how large it is, and that nothing in it comes from elsewhere.

tests/browser opens it in a browser.
"""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest

from gliotrail.dataset.brats import BRATS
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.prepared import case_of_array, read_labels_patch
from gliotrail.report.viewer import LARGEST_BYTES, NIIVUE_SHA256, viewer_html

CASE = "BRATS_119"


def script(page, name):
    return re.search(rf'<script type="[\w/]+" id="{name}">(.*?)</script>', page, re.DOTALL)[1]


def facts_of(page):
    return json.loads(script(page, "facts"))


def volume(page, name):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(script(page, name))))


@pytest.fixture(scope="module")
def case(prepared_crops):
    return prepared_crops.cases[CASE]


@pytest.fixture(scope="module")
def truth(case):
    return read_labels_patch(case, Box((0, 0, 0), case.ras_shape_vox))


@pytest.fixture(scope="module")
def predicted(truth):
    return np.where(truth == 2, 3, np.roll(truth, 1, 0)).astype(np.uint8)


@pytest.fixture(scope="module")
def page(case, truth, predicted):
    return viewer_html(case, truth, predicted)


def test_it_holds_four_modalities_in_the_brains_box_within_a_step_of_8_bits(page, case):
    facts, scan = facts_of(page), volume(page, "scan")
    assert scan.shape == (*case.box.size_vox, 4)
    assert [channel["name"] for channel in facts["channels"]] == list(case.channels)
    brain = (case.image_CIJK != 0).any(axis=0)
    for channel, image in enumerate(case.image_CIJK):
        low, high = (facts["channels"][channel][end] for end in ("low", "high"))
        codes = np.asarray(scan.dataobj)[..., channel]
        assert (codes > 0).tolist() == brain.tolist()
        shown = low + (codes[brain] - 1.0) / 254 * (high - low)
        assert np.abs(shown - np.clip(image[brain], low, high)).max() <= (high - low) / 254


def test_it_holds_truth_prediction_and_errors_voxel_by_voxel(page, case, truth, predicted):
    box = case.box.slices
    assert (np.asarray(volume(page, "truth").dataobj) == truth[box]).all()
    assert (np.asarray(volume(page, "prediction").dataobj) == predicted[box]).all()
    errors = np.asarray(volume(page, "errors").dataobj)
    assert ((errors == 1) == ((truth == predicted) & (truth > 0))[box]).all()
    assert ((errors == 3) == ((truth == 0) & (predicted > 0))[box]).all()


def test_its_voxels_and_mm_are_those_of_the_scans_file(case, truth):
    """Of a file whose axes are j, k, i, two of them mirrored."""
    turned = np.array([[0, 0, -1, 200], [-1, 0, 0, 100], [0, 1, 0, 5], [0, 0, 0, 1]], float)
    corner = case.affine_ras @ [*case.box.start_vox, 1]
    facts = facts_of(viewer_html(replace(case, file_affine=turned), truth))
    start = np.array([*facts["start"], 1])
    assert (np.array(facts["to_mm"]) @ [0, 0, 0, 1] == corner).all()
    np.testing.assert_allclose(turned @ facts["to_file"] @ start, facts["to_mm"] @ start)
    in_file = np.rint(np.array(facts["to_file"])[:3, :3])
    assert (np.abs(in_file).sum(axis=0) == 1).all()


def test_the_crosshair_starts_in_the_tumour(page, truth, case):
    assert truth[case.box.slices][tuple(facts_of(page)["start"])] > 0


def test_without_a_prediction_or_a_truth_it_shows_what_there_is(case, truth):
    names = [o["name"] for o in facts_of(viewer_html(case, truth))["overlays"]]
    assert names == ["truth"]
    assert facts_of(viewer_html(case))["overlays"] == []


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "</script><b>", "a\"'&{{facts}}"])
def test_a_name_from_data_stays_text(case, name):
    page = viewer_html(replace(case, name=name))
    assert facts_of(page)["name"] == name
    head, facts = page.partition("<style>")[0], script(page, "facts")
    assert name not in head
    assert "<" not in facts


def test_nothing_is_loaded_from_elsewhere(page):
    assert "default-src 'none'" in page
    own = re.sub(r'<script type="application/gzip".*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(", own)


def test_niivue_is_the_one_that_was_published_and_its_licence_is_in_the_page(page):
    packed = (files("gliotrail.report") / "niivue/niivue.umd.js.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == NIIVUE_SHA256
    assert base64.b64decode(script(page, "niivue")) == packed
    assert "Copyright (c) 2021, Niivue" in page


def test_the_same_case_gives_the_same_bytes(page, case, truth, predicted):
    assert viewer_html(case, truth, predicted) == page


def test_a_page_that_is_too_large_takes_fewer_voxels_and_says_so(case, truth, predicted):
    page = viewer_html(case, truth, predicted, largest_bytes=1_300_000)
    assert len(page) <= 1_300_000
    facts = facts_of(page)
    assert "one in 2 along each axis" in facts["about"]
    shown = np.asarray(volume(page, "truth").dataobj)
    assert (shown == truth[case.box.slices][::2, ::2, ::2]).all()
    step = np.array(facts["to_mm"]) @ [1, 0, 0, 1] - np.array(facts["to_mm"]) @ [0, 0, 0, 1]
    np.testing.assert_allclose(step, case.affine_ras @ [2, 0, 0, 0])


def test_a_whole_scan_fits_into_15_mb(prepared_demo):
    """The demo's slab, mirrored and stacked to 155 slices of 240 x 240, with noise of its own."""
    slab = prepared_demo.cases[CASE]
    stacked = np.concatenate([slab.image_CIJK, slab.image_CIJK[..., ::-1]] * 3, axis=3)[..., :155]
    noise = np.random.default_rng(7).integers(-3, 4, stacked.shape, np.int16)
    whole = np.zeros((4, 240, 240, 155), np.int16)
    i, j, _ = slab.box.slices
    whole[:, i, j] = np.where(stacked != 0, stacked + noise, 0).clip(0)
    case = case_of_array(whole, slab.affine_ras, "whole", BRATS.channels)
    labels = np.random.default_rng(7).integers(0, 4, (30, 30, 31), np.uint8)
    labels = labels.repeat(8, 0).repeat(8, 1).repeat(5, 2)
    page = viewer_html(case, labels, labels[::-1])
    assert len(page.encode()) <= LARGEST_BYTES
    assert "one in" not in facts_of(page)["about"]
