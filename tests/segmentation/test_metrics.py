import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail.errors import DataError
from gliotrail.segmentation.metrics import (
    Counts,
    confusion,
    counts_of,
    dice_coefficient,
    mean_defined,
    sensitivity,
    specificity,
)
from tests.support.brain import CLASS_LABELS, REGIONS

ALL = {**CLASS_LABELS, **REGIONS}
seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=50)


def one_class(values: list[list[float]]) -> torch.Tensor:
    """One class of a 2x2x1 patch, as the worked examples give it."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 2, 2, 1)


def random_labels(seed: int, shape=(5, 4, 3)) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(seed).integers(0, 4, (2, *shape)).astype(np.uint8)
    return labels[0], labels[1]


@pytest.mark.parametrize(
    ("truth", "value"),
    [([[1, 1], [0, 0]], 0.6), ([[1, 1], [0, 1]], 0.8333333333333334)],
)
def test_dice_coefficient_is_the_worked_examples(truth, value):
    p, y = one_class([[1, 0], [0, 1]]), one_class(truth)
    assert dice_coefficient(p, y, eps=1).item() == pytest.approx(value, abs=1e-15)


def test_sensitivity_and_specificity_are_the_worked_example():
    p, y = one_class([[1, 0], [0, 1]]), one_class([[1, 1], [0, 1]])
    assert sensitivity(p, y).item() == pytest.approx(0.6666666666666666, abs=1e-15)
    assert specificity(p, y).item() == 1.0


def test_the_threshold_is_strictly_above_one_half():
    p, y = one_class([[0.5, 0.51], [0, 0]]), one_class([[1, 1], [0, 0]])
    assert sensitivity(p, y).item() == 0.5
    assert dice_coefficient(p, y, eps=0).item() == pytest.approx(2 / 3)
    assert dice_coefficient(p, y, eps=0, threshold=None).item() == pytest.approx(2.02 / 3.01)


def test_an_empty_truth_is_nan_in_a_tensor_and_says_so_per_class():
    y = torch.zeros(1, 2, 2, 2, 2)
    y[0, 1] = 1
    p = torch.ones_like(y)
    assert sensitivity(p, y).isnan().tolist() == [[True, False]]
    assert specificity(p, y).isnan().tolist() == [[False, True]]


@quick
@given(seeds)
def test_tensor_measures_are_those_of_the_counts(seed):
    ref, pred = random_labels(seed)
    y, p = (
        torch.stack([torch.from_numpy(v == c) for c in (1, 2, 3)])[None].double()
        for v in (ref, pred)
    )
    table = confusion(ref, pred, 4)
    for c in range(3):
        counts = counts_of(table, (c + 1,))
        assert dice_coefficient(p, y, eps=0)[0, c].item() == pytest.approx(counts.dice)
        assert sensitivity(p, y)[0, c].item() == pytest.approx(counts.sensitivity)
        assert specificity(p, y)[0, c].item() == pytest.approx(counts.specificity)


@quick
@given(seeds)
def test_tensor_measures_follow_a_permutation_of_the_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(4, 3, 3, 4, 2, generator=generator)
    y = (torch.rand(4, 3, 3, 4, 2, generator=generator) < 0.4).float()
    order = torch.tensor([3, 1, 0, 2])
    for measure in (dice_coefficient, sensitivity, specificity):
        permuted = measure(p[order], y[order])
        torch.testing.assert_close(permuted, measure(p, y)[order], equal_nan=True)


@quick
@given(seeds)
def test_the_confusion_counts_every_voxel_once(seed):
    ref, pred = random_labels(seed)
    table = confusion(ref, pred, 4)
    slow = [[int(((ref == r) & (pred == p)).sum()) for p in range(4)] for r in range(4)]
    assert table.dtype == np.int64
    assert table.tolist() == slow
    assert confusion(pred, ref, 4).tolist() == table.T.tolist()


def test_blocks_are_added_up(monkeypatch):
    ref, pred = random_labels(1, (7, 6, 5))
    whole = confusion(ref, pred, 4, ref != 1)
    monkeypatch.setattr("gliotrail.segmentation.metrics._BLOCK_VOXELS", 70)
    assert confusion(ref, pred, 4, ref != 1).tolist() == whole.tolist()


@quick
@given(seeds)
def test_inside_a_mask_and_outside_it_make_the_whole(seed):
    ref, pred = random_labels(seed)
    brain = np.random.default_rng(seed).random(ref.shape) < 0.6
    parts = confusion(ref, pred, 4, brain) + confusion(ref, pred, 4, ~brain)
    assert parts.tolist() == confusion(ref, pred, 4).tolist()


@quick
@given(seeds)
def test_counts_of_every_class_and_region_are_those_of_its_masks(seed):
    ref, pred = random_labels(seed)
    table = confusion(ref, pred, 4)
    for labels in ALL.values():
        y, p = np.isin(ref, labels), np.isin(pred, labels)
        counts = counts_of(table, labels)
        slow = ((y & p).sum(), (~y & p).sum(), (y & ~p).sum(), (~y & ~p).sum())
        assert (counts.tp, counts.fp, counts.fn, counts.tn) == slow
        mirrored = counts_of(table.T, labels)
        assert mirrored.dice == counts.dice
        assert 0 <= counts.dice <= 1
        assert 0 <= counts.sensitivity <= 1
        assert 0 <= counts.specificity <= 1


@quick
@given(seeds)
def test_a_perfect_prediction_scores_one(seed):
    ref, _ = random_labels(seed)
    for labels in ALL.values():
        counts = counts_of(confusion(ref, ref, 4), labels)
        assert (counts.dice, counts.sensitivity, counts.specificity) == (1, 1, 1)


@pytest.mark.parametrize(
    ("counts", "dice", "found", "free"),
    [
        (Counts(0, 0, 0, 9), None, None, 1.0),
        (Counts(0, 4, 0, 5), 0.0, None, 5 / 9),
        (Counts(0, 0, 4, 5), 0.0, 0.0, 1.0),
        (Counts(9, 0, 0, 0), 1.0, 1.0, None),
        (Counts(1, 0, 0, 8), 1.0, 1.0, 1.0),
    ],
)
def test_the_rule_for_empty_truth_or_prediction(counts, dice, found, free):
    assert (counts.dice, counts.sensitivity, counts.specificity) == (dice, found, free)


def test_means_are_over_the_defined_values_and_say_how_many():
    assert mean_defined([0.5, None, 1.0]) == (0.75, 2)
    assert mean_defined([None, None]) == (None, 0)
    assert not math.isnan(mean_defined([0.0, None]).value)


def test_bad_labels_and_shapes_are_refused_in_one_line():
    ref, pred = random_labels(1)
    with pytest.raises(DataError, match=r"labels of the prediction: wanted 0, 1, 2, 3, got 0 to 4"):
        confusion(ref, np.where(pred == 3, np.uint8(4), pred), 4)
    with pytest.raises(DataError, match=r"labels of the truth"):
        confusion(ref.astype(np.int16) - 1, pred, 4)
    with pytest.raises(DataError, match=r"shape of the prediction: wanted \(5, 4, 3\)"):
        confusion(ref, pred[:-1], 4)
    with pytest.raises(DataError, match=r"shape of the mask"):
        confusion(ref, pred, 4, ref[:-1] > 0)
