import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from gliotrail.imaging.prepare import prepare
from tests.cli.conftest import Ended
from tests.support.scans import DEMO, lay_out_crops, split_section

Gliotrail = Callable[..., Ended]
IMAGE = DEMO / "crops/BRATS_009_crop_image.nii.gz"
LABEL = DEMO / "crops/BRATS_009_crop_label.nii.gz"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("show")
    prepare(split_section(), lay_out_crops(root / "raw"), root / "data/prepare", processes=1)
    return root


@pytest.fixture
def show(
    gliotrail: Gliotrail, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Gliotrail:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(project / "data")

    def run(*words: object) -> Ended:
        return gliotrail("show", *words)

    return run


def voxel(ended: Ended) -> list[int]:
    return json.loads(ended.out)["voxel"]


def test_a_prepared_case_is_drawn_through_its_largest_tumour_slice(show: Gliotrail) -> None:
    ended = show("BRATS_009", "--json")
    labels = np.asarray(nib.load(LABEL).dataobj)  # RAS+ already
    areas = [(labels > 0).sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    assert voxel(ended) == [int(area.argmax()) for area in areas]
    with Image.open("BRATS_009.png") as image:
        assert image.width > 700


def test_a_random_slice_is_the_same_for_the_same_seed(show: Gliotrail) -> None:
    first, again, other = (
        voxel(show("BRATS_009", "--slice", "random", "--seed", seed, "--json"))
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_file_with_a_mask_is_drawn_as_the_prepared_case_is(show: Gliotrail) -> None:
    copy = shutil.copy(IMAGE, "BRATS_009.nii.gz")
    assert show("BRATS_009", "--slice", "9,20,11", "-o", "a.png").code == 0
    assert show(copy, "--labels", LABEL, "--slice", "9,20,11", "-o", "b.png").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_an_animation_goes_through_the_slices(show: Gliotrail) -> None:
    assert show(IMAGE, "-o", "a.gif").out == "a.gif\n"
    with Image.open("a.gif") as gif:
        assert gif.n_frames == nib.load(IMAGE).shape[2]


def test_on_a_light_ground_the_page_is_white_and_the_brain_the_same(show: Gliotrail) -> None:
    looks = []
    for theme in ("dark", "light"):
        assert show("BRATS_009", "--theme", theme, "-o", f"{theme}.png").code == 0
        looks.append(np.asarray(Image.open(f"{theme}.png").convert("RGB")).astype(int))
    dark, light = looks
    assert (light[0, 0] == 255).all()
    same = (np.abs(dark - light) <= 8).all(axis=-1)  # their palettes may differ
    assert 0.3 < same.mean() < 0.95


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["BRATS_010"], "wanted one of BRATS_009, BRATS_119, or a NIfTI file, got"),
        (["BRATS_009", "--slice", "biggest"], "wanted largest, random or a voxel"),
        (["BRATS_009", "--slice", "9,9,999"], "got (9, 9, 999)"),
        (["BRATS_009", "-o", "a.jpeg"], "wanted a .png or .gif"),
        (["BRATS_009", "-o", "a.gif", "--theme", "light"], "--theme light: wanted a .png"),
    ],
)
def test_what_cant_be_drawn_is_one_line_and_no_file(
    show: Gliotrail, words: list[str], told: str
) -> None:
    ended = show(*words)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert told in ended.err
    assert not list(Path().glob("*.*"))
