import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliotrail.errors import DataError
from gliotrail.imaging.labels import Labels
from gliotrail.synthesis.tumours import (
    Anatomy,
    Style,
    read_anatomy,
    read_shape,
    shape_path,
    smooth_noise,
    synthesize,
)
from tests.support.brain import CHANNELS
from tests.support.scans import ROOT

FOLDER = ROOT / "data/pretrain"
SIZE = (24, 28, 20)
FLAIR, T1GD, T2 = (CHANNELS.index(name) for name in ("FLAIR", "T1gd", "T2w"))


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return read_anatomy(FOLDER / "open_ms_patient07")


@pytest.fixture(scope="module")
def shape() -> Labels:
    return read_shape(shape_path(FOLDER, "BRATS_001"))


def made(anatomy: Anatomy, shape: Labels, seed: int, *, with_tumour: bool = True):
    rng = np.random.default_rng(seed)
    return synthesize(anatomy, shape, SIZE, rng, Style(), with_tumour=with_tumour)


def test_a_head_is_standardised_over_its_brain_and_0_around_it(anatomy: Anatomy) -> None:
    values = anatomy.image_IJKC[anatomy.brain]
    assert np.abs(values.mean(axis=0)).max() < 1e-3
    assert np.abs(values.std(axis=0) - 1).max() < 1e-3
    assert not anatomy.image_IJKC[~anatomy.brain].any()
    assert int(anatomy.unknown.sum()) == 1300


def test_a_shape_is_cropped_to_its_tumour(shape: Labels) -> None:
    assert set(np.unique(shape)) == {0, 1, 2, 3}
    for axis in range(3):
        ends = shape.take([0, -1], axis)
        assert all(end.any() for end in np.moveaxis(ends, axis, 0))


def test_the_same_random_numbers_give_the_same_sample(anatomy: Anatomy, shape: Labels) -> None:
    first, again, other = (made(anatomy, shape, seed) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    assert first[0].tobytes() != other[0].tobytes()


@pytest.mark.parametrize("seed", range(6))
def test_a_sample_is_a_tumour_inside_a_brain(anatomy: Anatomy, shape: Labels, seed: int) -> None:
    image_CIJK, labels_IJK, unknown_IJK = made(anatomy, shape, seed)
    assert image_CIJK.shape == (4, *SIZE)
    assert image_CIJK.dtype == np.float32
    assert labels_IJK.shape == unknown_IJK.shape == SIZE
    assert np.isfinite(image_CIJK).all()
    brain = (image_CIJK != 0).any(axis=0)
    assert not labels_IJK[~brain].any()
    assert not (unknown_IJK & (labels_IJK > 0)).any()


def test_a_healthy_sample_has_no_label(anatomy: Anatomy, shape: Labels) -> None:
    assert not made(anatomy, shape, 1, with_tumour=False)[1].any()


def test_a_head_s_own_lesions_are_unknown(shape: Labels) -> None:
    lesioned = read_anatomy(FOLDER / "open_ms_patient19")
    centre = tuple(float(x) for x in np.argwhere(lesioned.unknown).mean(axis=0))
    rng = np.random.default_rng(0)
    _, _, unknown = synthesize(lesioned, shape, SIZE, rng, Style(), centre, with_tumour=False)
    assert unknown.any()


def test_classes_look_as_radiology_describes_them(anatomy: Anatomy, shape: Labels) -> None:
    """On the mean of many: edema bright on FLAIR and T2, the enhancing part brightest on T1gd."""
    brighter: dict[str, list[float]] = {"FLAIR": [], "T2w": [], "T1gd": []}
    for seed in range(40):
        image_CIJK, labels_IJK, _ = made(anatomy, shape, seed)
        healthy = (labels_IJK == 0) & (image_CIJK != 0).any(axis=0)
        if min((labels_IJK == label).sum() for label in (1, 3)) < 50 or healthy.sum() < 50:
            continue
        edema, enhancing = image_CIJK[:, labels_IJK == 1], image_CIJK[:, labels_IJK == 3]
        for channel in (FLAIR, T2):
            gain = edema[channel].mean() - image_CIJK[channel][healthy].mean()
            brighter[CHANNELS[channel]].append(float(gain))
        brighter["T1gd"].append(float(enhancing[T1GD].mean() - edema[T1GD].mean()))
    assert len(brighter["T1gd"]) >= 10
    assert {name: np.mean(gains) > 0.4 for name, gains in brighter.items()} == {
        "FLAIR": True, "T2w": True, "T1gd": True,
    }  # fmt: skip


@given(seed=st.integers(0, 2**32 - 1))
def test_a_style_draws_within_its_spans(seed: int) -> None:
    style, rng = Style(((0, 0.25), (0.5, 0.75))), np.random.default_rng(seed)
    for _ in range(20):
        value = style.draw(rng, -2, 2)
        assert -2 <= value <= -1 or 0 <= value <= 1


def test_smooth_noise_has_mean_0_and_std_1_and_changes_slowly() -> None:
    noise = smooth_noise((64, 64, 64), 8, np.random.default_rng(3))
    assert abs(noise.mean()) < 0.15
    assert abs(noise.std() - 1) < 0.15
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.25


def test_a_head_without_a_modality_or_with_another_grid_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    shutil.copytree(FOLDER / "open_ms_patient07", folder)
    scan = nib.load(folder / "T2.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine * 1.1), folder / "T2.nii.gz")
    with pytest.raises(DataError, match=r"T2.nii.gz: affine: wanted that of the other modalities"):
        read_anatomy(folder)
    (folder / "T1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"T1.nii.gz: no such file"):
        read_anatomy(folder)
