import numpy as np
import pytest

from gliotrail.imaging.foreground import air_value


def scan(air: float, dtype: type = np.float32) -> np.ndarray:
    """A ball of noise in a constant."""
    grid = np.indices((20, 22, 24)) - np.array([10, 11, 12])[:, None, None, None]
    noise = np.random.default_rng(1).normal(100, 20, grid.shape[1:])
    return np.where((grid**2).sum(axis=0) < 80, noise, air).astype(dtype)


@pytest.mark.parametrize(("air", "dtype"), [(0, np.int16), (-1024, np.int16), (-0.43, np.float32)])
def test_air_is_what_fills_the_border(air: float, dtype: type) -> None:
    assert air_value(scan(air, dtype)) == pytest.approx(air)


def test_a_body_that_reaches_the_border_on_some_sides_still_has_air_around() -> None:
    assert air_value(scan(-1024)[6:-6]) == -1024


def test_a_constant_that_is_rare_in_the_border_is_no_air() -> None:
    noise = np.random.default_rng(1).normal(100, 20, (20, 20, 20))
    noise[:3] = -1024
    assert air_value(noise) == 0


def test_the_border_may_begin_with_another_value() -> None:
    values = scan(7)
    values[0, 0, 0] = 99
    assert air_value(values) == 7


def test_a_constant_body_in_zeros_is_no_air() -> None:
    body = np.zeros((20, 20, 20), np.int16)
    body[:, :, 1:] = 500
    assert air_value(body) == 0
