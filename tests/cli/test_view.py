"""`gliotrail view` as it is typed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gliotrail.imaging.geometry import Box
from gliotrail.imaging.prepared import Prepared, read_labels_patch
from gliotrail.report.viewer import viewer_html
from tests.support.scans import DEMO, save

CASE = "BRATS_119"
TRUTH = DEMO / f"crops/{CASE}_crop_label.nii.gz"


@pytest.fixture
def here(prepared_crops: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with prepared cases."""
    folder = prepared_crops.cases[CASE].folder
    assert folder is not None
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepare").symlink_to(folder.parents[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_writes_the_page_of_a_case_with_evaluates_mask(gliotrail, here, prepared_crops):
    made = here / "results/evaluate/masks" / f"{CASE}.nii.gz"
    made.parent.mkdir(parents=True)
    shutil.copy(TRUTH, made)
    ended = gliotrail("view", CASE, "--no-open", "-o", "page.html")
    assert (ended.code, ended.out) == (0, "page.html\n")
    case = prepared_crops.cases[CASE]
    truth = read_labels_patch(case, Box((0, 0, 0), case.ras_shape_vox))
    assert (here / "page.html").read_text() == viewer_html(case, truth, truth)


def test_without_a_mask_it_shows_the_truth_alone_in_a_page_of_its_own(gliotrail, here):
    page = Path(gliotrail("view", CASE, "--no-open").out.strip())
    assert page == Path(os.environ["GLIOTRAIL_STATE"]) / f"views/{CASE}.html"
    assert 'id="truth"' in page.read_text()
    assert 'id="prediction"' not in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["BRATS_007"], "data/prepare: case: wanted one of BRATS_009, BRATS_119, got 'BRATS_007'"),
        ([CASE, "--mask", "other.nii.gz"], "other.nii.gz: grid: wanted that of BRATS_119"),
        ([CASE, "-o", "other.nii.gz"], "output: wanted a .html, got other.nii.gz"),
        ([CASE, "-o", "data"], "output: wanted a .html, got data"),
    ],
)
def test_what_it_cannot_show_is_one_line(gliotrail, here, words, message):
    save(here / "other.nii.gz", np.zeros((64, 64, 16), np.uint8), np.diag([2.0, 1, 1, 1]))
    ended = gliotrail("view", "--no-open", "-o", "page.html", *words)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1
    assert not (here / "page.html").exists()
