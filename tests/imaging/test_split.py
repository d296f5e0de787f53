from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gliotrail import params
from gliotrail.errors import ParamsError
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.split import (
    Region,
    Split,
    fold_of,
    make_split,
    split_from_json,
    split_to_json,
)

SHAPES = {f"P{n:02}": (40, 50, 60) for n in range(20)}
BLOCK = {"case": "P03", "start_vox": [0, 30, 0], "stop_vox": [40, 50, 60], "margin_vox": 4}


def split_of(shapes: dict[str, tuple[int, int, int]] = SHAPES, **values: Any) -> Split:
    rule = {"seed": 7, "test": [], "validation": []} | values
    return make_split(params.Split.model_validate(rule), shapes)


def parts(split: Split) -> list[str]:
    whole = [region.case for region in split.validation if region.box is None]
    return sorted([*split.training, *whole, *split.test])


def test_lists_are_taken_as_they_are() -> None:
    split = split_of(test=["P07", "P01"], validation=["P03"])
    assert split.test == ("P01", "P07")
    assert split.validation == (Region("P03"),)
    assert len(split.training) == 17
    assert parts(split) == sorted(SHAPES)
    assert split.kept_out == {}


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.45), st.floats(0, 0.45), st.integers(3, 40))
def test_shares_put_every_case_in_one_part(
    seed: int, test: float, validation: float, count: int
) -> None:
    assume(sum(max(1, round(share * count)) for share in (test, validation) if share) < count)
    shapes = {f"P{n}": (1, 1, 1) for n in range(count)}
    split = split_of(shapes, seed=seed, test=test, validation=validation)
    assert parts(split) == sorted(shapes)
    for share, part in ((test, split.test), (validation, split.validation)):
        assert abs(len(part) - share * count) <= (1 if share else 0)
        assert bool(part) == (share > 0)


def test_the_seed_and_nothing_else_decides() -> None:
    rule = {"test": 0.2, "validation": 0.2}
    reverse = dict(reversed(SHAPES.items()))
    assert split_of(**rule) == split_of(reverse, **rule)
    assert len({split_of(**rule, seed=seed).test for seed in range(10)}) > 5


def test_a_share_takes_no_case_that_is_listed_elsewhere() -> None:
    for seed in range(30):
        assert split_of(seed=seed, test=0.8, validation=["P03"]).validation == (Region("P03"),)
        assert "P03" in split_of(seed=seed, test=0.8, validation=BLOCK).training
        assert "P03" not in split_of(seed=seed, test=["P03"], validation=0.8).training


def test_a_block_is_kept_out_with_its_margin() -> None:
    split = split_of(test=["P01"], validation=BLOCK)
    assert split.validation == (Region("P03", Box((0, 30, 0), (40, 50, 60))),)
    assert split.kept_out == {"P03": Box((-4, 26, -4), (44, 54, 64))}
    assert "P03" in split.training


def test_a_split_survives_json() -> None:
    for validation in (BLOCK, ["P05"], 0.1):
        split = split_of(test=0.3, validation=validation)
        assert split_from_json(split_to_json(split)) == split


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"test": ["P99"]}, "prepare.split.test: labelled cases: wanted P00, .*more, got 'P99'"),
        ({"validation": ["P99"]}, "prepare.split.validation: labelled cases: .*got 'P99'"),
        ({"test": ["P01", "P01"]}, "prepare.split.test: wanted each case once, got P01 twice"),
        ({"test": ["P01"], "validation": ["P01"]}, "wanted each case in one part, got P01 in two"),
        ({"test": list(SHAPES)}, "no case is left to train on: got test 20, validation 0 of 20"),
        ({"test": 0.5, "validation": 0.5}, "no case is left to train on"),
        ({"validation": BLOCK | {"case": "P99"}}, "validation.case: wanted a training case: P00"),
        ({"validation": BLOCK, "test": ["P03"]}, "wanted a training case.*got 'P03'"),
        (
            {"validation": BLOCK | {"stop_vox": [41, 50, 60]}},
            r"prepare.split.validation: wanted start_vox < stop_vox <= \[40, 50, 60\], the scan of "
            r"P03, got \[0, 30, 0\] to \[41, 50, 60\]",
        ),
        ({"validation": BLOCK | {"stop_vox": [40, 30, 60]}}, "wanted start_vox < stop_vox"),
        ({"validation": BLOCK | {"start_vox": [40, 51, 0]}}, "wanted start_vox < stop_vox"),
    ],
)
def test_a_split_that_can_t_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        split_of(**values)
    assert "\n" not in str(caught.value)


def test_without_labelled_cases_there_is_nothing_to_train_on() -> None:
    with pytest.raises(ParamsError, match="no case is left to train on"):
        split_of({}, test=0.2)


@given(cases=st.integers(2, 30), of=st.integers(2, 30))
def test_each_training_case_is_judged_in_one_fold_and_trained_on_in_the_others(
    cases: int, of: int
) -> None:
    names = tuple(f"CASE_{n:03}" for n in range(cases))
    whole = Split(names, (), ("HELD_OUT",), {})
    if of > cases:
        with pytest.raises(ParamsError, match=rf"wanted 2 to {cases} folds"):
            fold_of(whole, 1, of)
        return
    folds = [fold_of(whole, number, of) for number in range(1, of + 1)]
    judged = [region.case for fold in folds for region in fold.validation]
    assert sorted(judged) == list(names)
    for fold in folds:
        assert sorted([*fold.training, *(r.case for r in fold.validation)]) == list(names)
        assert fold.test == ("HELD_OUT",)
    sizes = [len(fold.validation) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


REPEATED = dict.fromkeys(("BRATS_001", "BRATS_002", "BRATS_275", "BRATS_300"), (4, 4, 4))


def test_a_share_takes_a_patient_with_all_its_known_cases() -> None:
    for seed in range(20):
        split = split_of(REPEATED, seed=seed, test=0.25, validation=0.25)
        validation = [region.case for region in split.validation]
        for part in (split.training, validation, split.test):
            assert ("BRATS_001" in part) == ("BRATS_275" in part)


def test_a_list_that_parts_a_patient_is_refused() -> None:
    message = "BRATS_275 and BRATS_001 in one part: they are known to be one patient"
    with pytest.raises(ParamsError, match=message):
        split_of(REPEATED, test=("BRATS_001",), validation=("BRATS_002",))
    split_of(REPEATED, test=("BRATS_001", "BRATS_275"), validation=("BRATS_002",))


def test_a_fold_holds_a_patient_with_all_its_known_cases() -> None:
    whole = Split(tuple(REPEATED), (), (), {})
    folds = [fold_of(whole, number, 3) for number in (1, 2, 3)]
    judged = [[region.case for region in fold.validation] for fold in folds]
    assert judged == [["BRATS_001", "BRATS_275"], ["BRATS_002"], ["BRATS_300"]]
    assert folds[0].training == ("BRATS_002", "BRATS_300")
    with pytest.raises(ParamsError, match="wanted 2 to 3 folds"):
        fold_of(whole, 1, 4)
