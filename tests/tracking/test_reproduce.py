import math

import numpy as np
import pytest

from gliotrail.tracking.reproduce import Comparison, compare_numbers


def test_the_same_bits_are_identical() -> None:
    one = {"w": np.array([1.5, math.nan], np.float32), "loss": 0.1 + 0.2, "undefined": math.nan}
    other = {"undefined": math.nan, "loss": 0.1 + 0.2, "w": one["w"].copy()}
    assert compare_numbers(one, other) == Comparison(3, 3)
    assert compare_numbers(one, other).is_identical
    assert compare_numbers({}, {}).is_identical


def test_the_largest_difference_is_told_with_its_place() -> None:
    one = {"a": np.array([[1.0, 2.0]]), "b": np.array([5.0]), "same": 7.0}
    other = {"a": np.array([[1.0, 2.25]]), "b": np.array([4.0]), "same": 7.0}
    assert compare_numbers(one, other) == Comparison(3, 1, 1.0, "b")
    assert compare_numbers(other, one) == Comparison(3, 1, 1.0, "b")


def test_one_bit_is_a_difference() -> None:
    found = compare_numbers({"x": 0.3}, {"x": 0.1 + 0.2})
    assert (found.is_identical, found.largest) == (False, math.ulp(0.3))


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"x": np.zeros(3)},
        {"x": np.zeros(2, np.float32)},
        {"x": np.array([0.0, math.nan])},
        {"x": np.zeros(2), "more": 1.0},
    ],
)
def test_what_can_not_be_compared_is_infinitely_far(other: dict[str, object]) -> None:
    found = compare_numbers({"x": np.zeros(2)}, other)
    assert (found.is_identical, found.largest) == (False, math.inf)
    assert found.where in {"x", "more"}
