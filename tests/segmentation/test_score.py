import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail.errors import DataError
from gliotrail.segmentation.losses import soft_dice_loss
from gliotrail.segmentation.metrics import soft_dice_loss_scan
from gliotrail.segmentation.score import Score, score, score_files
from gliotrail.segmentation.surface_distance import hd95_mm, surface_dice
from tests.support.brain import CLASSES, REGIONS, class_masks, from_msd

DEMO = Path(__file__).parents[2] / "data/demo"
RAS = np.diag([1.0, 1.5, 2.0, 1.0])
OVERLAPS = ("dice", "sensitivity", "specificity")
quick = settings(deadline=None, max_examples=25)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """The labels of a crop of a real patient, 64x64x16."""
    return np.asarray(nib.load(DEMO / "crops/BRATS_119_crop_label.nii.gz").dataobj)


@pytest.fixture(scope="module")
def guess(truth) -> np.ndarray:
    """Another segmentation of it: moved by a voxel, a class lost in places."""
    moved = np.roll(truth, (1, -1), (0, 1))
    moved[20:40, :, 8] = 0
    return moved


def save(path: Path, labels: np.ndarray, affine: np.ndarray = RAS) -> Path:
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def close(a: dict, b: dict) -> bool:
    """Whether two scores are the same to 1e-12."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    return a == b if not isinstance(a, float) else a == pytest.approx(b, rel=1e-12, abs=1e-12)


def test_every_measure_is_that_of_its_mask(truth, guess):
    result = score(truth, guess, (1, 1.5, 2))
    groups = {name: (label,) for label, name in enumerate(CLASSES, 1)} | dict(REGIONS)
    for name, labels in groups.items():
        measures = {**result.classes, **result.regions}[name]
        y, p = np.isin(truth, labels), np.isin(guess, labels)
        assert measures.dice == pytest.approx(2 * (y & p).sum() / (y.sum() + p.sum()))
        assert measures.sensitivity == pytest.approx((y & p).sum() / y.sum())
        assert measures.specificity == pytest.approx((~y & ~p).sum() / (~y).sum())
        assert measures.hd95_mm == hd95_mm(y, p, (1, 1.5, 2))
        assert measures.surface_dice == surface_dice(y, p, (1, 1.5, 2), 1)
        assert measures.volume_ref_ml == pytest.approx(y.sum() * 3 / 1000)
        assert measures.volume_pred_ml == pytest.approx(p.sum() * 3 / 1000)
        assert measures.specificity_foreground is None
    assert result.surface_tolerance_mm == 1


def test_means_are_named_and_over_classes_and_regions(truth, guess):
    result = score(truth, guess, (1, 1, 1))
    assert list(result.classes) == ["edema", "non_enhancing", "enhancing"]
    assert list(result.regions) == ["WT", "TC", "ET"]
    for means, of in (
        (result.mean_classes, result.classes),
        (result.mean_regions, result.regions),
    ):
        for name in (*OVERLAPS, "hd95_mm", "surface_dice"):
            values = [getattr(measures, name) for measures in of.values()]
            assert getattr(means, name) == pytest.approx(sum(values) / 3)
            assert means.n[name] == 3
    assert result.mean_classes.dice != result.mean_regions.dice


def test_over_the_brain_only_specificity_differs_where_the_brain_holds_all(truth, guess):
    brain = (truth | guess) != 0
    result = score(truth, guess, (1, 1, 1), brain)
    for measures in result.classes.values():
        assert measures.dice_foreground == measures.dice
        assert measures.sensitivity_foreground == measures.sensitivity
        assert measures.specificity_foreground < measures.specificity
    half = brain.copy()
    half[:32] = False
    outside = score(truth, guess, (1, 1, 1), half).regions["WT"]
    wanted = score(truth[32:], guess[32:], (1, 1, 1), brain[32:]).regions["WT"]
    assert outside.dice_foreground == wanted.dice
    assert outside.dice != outside.dice_foreground


def test_a_perfect_prediction(truth):
    result = score(truth, truth.copy(), (1, 1, 1))
    for measures in (*result.classes.values(), *result.regions.values()):
        assert [getattr(measures, name) for name in OVERLAPS] == [1, 1, 1]
        assert (measures.hd95_mm, measures.surface_dice) == (0, 1)
    assert result.empty.ref == result.empty.pred == ()


def test_empty_classes_are_undefined_counted_and_named():
    """Truth: edema alone. Prediction: edema, and one voxel of enhancing tumour."""
    ref, pred = np.zeros((2, 6, 6, 6), np.uint8)
    ref[1:4, 1:4, 1:4] = pred[1:4, 1:4, 1:4] = 1
    pred[2, 2, 2] = 3
    result = score(ref, pred, (1, 1, 1))
    assert result.empty.ref == ("non_enhancing", "enhancing", "TC", "ET")
    assert result.empty.pred == ("non_enhancing",)
    both, only_pred = result.classes["non_enhancing"], result.classes["enhancing"]
    assert (both.dice, both.sensitivity, both.specificity, both.surface_dice) == (
        None,
        None,
        1,
        None,
    )
    assert (only_pred.dice, only_pred.sensitivity, only_pred.surface_dice) == (0, None, 0)
    assert (both.hd95_mm, only_pred.hd95_mm) == (None, None)
    means = result.mean_classes
    assert means.dice == pytest.approx((2 * 26 / (27 + 26) + 0) / 2)
    assert means.n | {"dice": 2, "sensitivity": 1, "specificity": 3, "hd95_mm": 1} == means.n
    assert result.mean_regions.dice == pytest.approx(1 / 3)


def test_nothing_anywhere():
    none = np.zeros((5, 4, 3), np.uint8)
    result = score(none, none, (1, 1, 1))
    assert result.mean_classes.dice is None
    assert result.mean_regions.hd95_mm is None
    assert result.mean_classes.n["dice"] == 0
    assert result.mean_classes.specificity == 1
    assert len(result.empty.ref) == len(result.empty.pred) == 6


@quick
@given(st.integers(0, 2**32 - 1))
def test_one_voxel_tumours(seed):
    """Enhancing tumour of one voxel each: in place 1 and 0 mm, else 0 and as far as they are."""
    rng = np.random.default_rng(seed)
    here, there = rng.integers(0, 6, (2, 3))
    ref, pred = np.zeros((2, 6, 6, 6), np.uint8)
    ref[tuple(here)] = pred[tuple(there)] = 3
    result = score(ref, pred, (1, 2, 3))
    mm = float(np.linalg.norm((here - there) * (1, 2, 3)))
    for name in ("WT", "TC", "ET"):
        assert result.regions[name].dice == (mm == 0)
        assert result.regions[name].hd95_mm == pytest.approx(mm)
        assert result.regions[name].volume_ref_ml == pytest.approx(0.006)


@quick
@given(st.integers(0, 2**32 - 1))
def test_exchanging_truth_and_prediction_keeps_the_symmetric_measures(seed):
    ref, pred = np.random.default_rng(seed).integers(0, 4, (2, 5, 4, 3)).astype(np.uint8)
    one, other = (score(a, b, (1, 2, 3)) for a, b in ((ref, pred), (pred, ref)))
    for name, measures in one.classes.items():
        mirrored = other.classes[name]
        assert measures.dice == mirrored.dice
        assert measures.hd95_mm == pytest.approx(mirrored.hd95_mm, abs=1e-12)
        assert measures.surface_dice == pytest.approx(mirrored.surface_dice, abs=1e-12)
        assert measures.volume_ref_ml == mirrored.volume_pred_ml


def test_the_saved_masks_score_the_same_and_json_brings_it_back(tmp_path, truth, guess):
    wanted = score(truth, guess, (1, 1.5, 2))
    files = score_files(save(tmp_path / "a.nii.gz", truth), save(tmp_path / "b.nii", guess))
    assert close(files.model_dump(), wanted.model_dump())
    text = json.dumps(files.model_dump(mode="json"), allow_nan=False)
    assert Score.model_validate_json(text) == files


@pytest.mark.parametrize("axes", ["LPS", "LAS", "PIR", "SRA"])
def test_grids_that_differ_only_in_orientation_are_aligned(tmp_path, truth, guess, axes):
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = (-30, 12, 7)
    straight = save(tmp_path / "ref.nii.gz", truth, affine)
    pred = nib.Nifti1Image(guess, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    nib.save(pred.as_reoriented(turn), tmp_path / "pred.nii.gz")
    assert nib.aff2axcodes(nib.load(tmp_path / "pred.nii.gz").affine) == tuple(axes)
    wanted = score(truth, guess, (1, 1.5, 2))
    assert close(score_files(straight, tmp_path / "pred.nii.gz").model_dump(), wanted.model_dump())
    turned = score_files(tmp_path / "pred.nii.gz", straight)
    assert turned.classes["edema"].dice == wanted.classes["edema"].dice


@pytest.mark.parametrize("scheme", ["brats21", "brats23"])
def test_the_truth_may_have_another_scheme_s_codes(tmp_path, truth, guess, scheme):
    ref = save(tmp_path / "ref.nii.gz", from_msd(truth, scheme))
    pred = save(tmp_path / "pred.nii.gz", guess)
    wanted = score(truth, guess, (1, 1.5, 2))
    assert close(score_files(ref, pred, scheme).model_dump(), wanted.model_dump())


def test_other_differences_of_the_grid_are_refused_in_one_line(tmp_path, truth):
    ref = save(tmp_path / "ref.nii.gz", truth)
    moved, wider = RAS.copy(), np.diag([1.2, 1.5, 2.0, 1.0])
    moved[0, 3] = 0.5
    for name, labels, affine, what in (
        ("shape", truth[1:], RAS, r"shape: wanted 64 x 64 x 16 as .*ref.nii.gz, got 63 x 64 x 16"),
        ("moved", truth, moved, r"affine: wanted that of .*ref.nii.gz, got voxels up to 0.5 mm"),
        ("wider", truth, wider, r"affine"),
    ):
        pred = save(tmp_path / f"{name}.nii.gz", labels, affine)
        with pytest.raises(DataError, match=what) as error:
            score_files(ref, pred)
        assert str(pred) in str(error.value)
        assert "\n" not in str(error.value)


def test_files_that_are_no_labels_are_refused(tmp_path, truth):
    ref = save(tmp_path / "ref.nii.gz", truth)
    four = save(tmp_path / "four.nii.gz", from_msd(truth, "brats21"))
    with pytest.raises(DataError, match=r"four.nii.gz: label values: wanted among 0, 1, 2, 3"):
        score_files(ref, four)
    with pytest.raises(
        DataError, match=r"ref.nii.gz: label values: wanted among 0, 1, 2, 4, got 3"
    ):
        score_files(ref, ref, "brats21")
    with pytest.raises(DataError, match="no such file"):
        score_files(ref, tmp_path / "missing.nii.gz")


def test_real_patients_score_themselves(tmp_path):
    path = DEMO / "labelsTr/BRATS_119.nii.gz"
    result = score_files(path, path)
    assert result.mean_regions.dice == 1
    assert result.classes["edema"].volume_ref_ml == pytest.approx(62.778)


@quick
@given(st.integers(0, 2**32 - 1))
def test_the_whole_scan_s_soft_dice_loss_is_the_training_s(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (5, 4, 3)).astype(np.uint8)
    p = rng.random((3, 5, 4, 3))
    y = torch.from_numpy(class_masks(labels))[None]
    wanted = soft_dice_loss(torch.from_numpy(p)[None], y).item()
    assert soft_dice_loss_scan(p, labels) == pytest.approx(wanted, abs=1e-14)


def test_the_whole_scan_s_soft_dice_loss_reads_a_mapped_file(tmp_path, truth):
    path = tmp_path / "p.npy"
    np.save(path, class_masks(truth).astype(np.float16))
    mapped = np.load(path, mmap_mode="r")
    assert soft_dice_loss_scan(mapped, truth) == pytest.approx(0, abs=1e-12)
    with pytest.raises(DataError, match=r"shape of the probabilities: wanted \(3, 64, 64, 16\)"):
        soft_dice_loss_scan(mapped[:, :2], truth)
