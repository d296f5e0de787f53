"""nnU-Net's random changes: what each does, and that all come from the sample's numbers alone."""

from dataclasses import replace

import numpy as np
import pytest

from gliotrail.segmentation.augment import (
    change_intensities,
    placement,
    source_box,
    warp,
)
from gliotrail.segmentation.batches import Patches
from tests.support.scans import augmented

INTENSITIES = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
SIZE = (12, 9, 7)


def image() -> np.ndarray:
    values = np.random.default_rng(1).standard_normal((4, 20, 18, 16)).astype(np.float32)
    values[:, :3] = 0
    return values


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def ramps(side: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Channels that are i, j, k and 1 everywhere, and labels of a half."""
    i, j, k = np.indices((side,) * 3).astype(np.float32) + 1
    return np.stack([i, j, k, np.ones_like(i)]), (i > 30).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_a_turned_and_scaled_patch_shows_what_is_there(seed: int) -> None:
    matrix = placement(augmented(rotate=1, scale=1), rng(seed))
    assert matrix is not None
    scale = np.linalg.norm(matrix, axis=0)
    assert scale == pytest.approx([scale[0]] * 3)
    assert 0.7 <= scale[0] <= 1.4
    corner = (24, 25, 26)
    box = source_box(corner, SIZE, matrix)
    volume, labels = ramps()
    seen, marked = warp(volume[:, *box.slices], labels[box.slices], box, corner, SIZE, matrix)
    half = (np.array(SIZE) - 1) / 2
    offsets = np.indices(SIZE).reshape(3, -1) - half[:, None]
    there = matrix @ offsets + (np.array(corner) + half)[:, None]
    np.testing.assert_allclose(seen[:3].reshape(3, -1), there + 1, atol=1e-4)
    near_edge = np.abs(there[0] + 1 - 30.5) < 1e-3
    assert np.array_equal(marked.ravel()[~near_edge], (there[0] + 1 > 30.5)[~near_edge])


def test_beyond_the_brain_there_is_nothing_after_turning_either() -> None:
    matrix = placement(augmented(rotate=1), rng())
    assert matrix is not None
    volume, labels = ramps(40)
    volume[:, 20:] = 0
    box = source_box((14, 14, 14), SIZE, matrix)
    seen, _ = warp(volume[:, *box.slices], labels[box.slices], box, (14, 14, 14), SIZE, matrix)
    outside = (seen == 0).all(axis=0)
    assert 0 < outside.mean() < 1
    assert np.array_equal(outside, seen[3] == 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_compiled_kernel_gives_the_same_to_the_last_bit(seed: int) -> None:
    matrix = placement(augmented(rotate=1, scale=1), rng(seed))
    assert matrix is not None
    volume = rng(seed).standard_normal((4, 40, 40, 40)).astype(np.float32)
    volume[:, rng(seed).random((40, 40, 40)) < 0.4] = 0
    labels = rng(seed).integers(0, 4, (40, 40, 40), np.uint8)
    corner = (14, 15, 30)  # some of it beyond the edge
    box = source_box(corner, SIZE, matrix)
    inside = tuple(slice(s.start, min(s.stop, 40)) for s in box.slices)
    plain, fused = (
        warp(volume[:, *inside], labels[inside], box, corner, SIZE, matrix, how)
        for how in (False, True)
    )
    assert plain[0].any()
    assert np.array_equal(plain[0], fused[0])
    assert np.array_equal(plain[1], fused[1])


def test_as_often_as_asked_for() -> None:
    turned = [placement(augmented(rotate=0.2, scale=0.2), rng(n)) is not None for n in range(2000)]
    assert np.mean(turned) == pytest.approx(0.36, abs=0.04)
    assert placement(augmented(), rng()) is None


@pytest.mark.parametrize("name", INTENSITIES)
def test_each_change_leaves_the_background_and_follows_from_the_seed(name: str) -> None:
    once, again, other = (
        change_intensities(image(), augmented(**{name: 1}), rng(seed)) for seed in (2, 2, 3)
    )
    assert once.dtype == np.float32
    assert np.isfinite(once).all()
    assert not once[:, :3].any()
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert not np.array_equal(once, image())
    assert np.array_equal(change_intensities(image(), augmented(), rng()), image())


def brain(values: np.ndarray) -> np.ndarray:
    return values[:, 3:].reshape(4, -1)


def test_what_each_change_keeps() -> None:
    def changed(name: str) -> np.ndarray:
        return brain(change_intensities(image(), augmented(**{name: 1}), rng(2)))

    before = brain(image())
    gamma = changed("gamma")
    np.testing.assert_allclose(gamma.mean(1), before.mean(1), atol=1e-5)
    np.testing.assert_allclose(gamma.std(1), before.std(1), rtol=1e-4)
    contrast = changed("contrast")
    assert (contrast.min(1) >= before.min(1)).all()
    assert (contrast.max(1) <= before.max(1)).all()
    ratio = changed("brightness") / before
    assert np.allclose(ratio, ratio[:, :1], rtol=1e-5)
    assert ((ratio[:, 0] > 0.75) & (ratio[:, 0] < 1.25)).all()
    assert 0 < (changed("noise") - before).var() < 0.11
    for name in ("blur", "low_resolution"):
        untouched = (changed(name) == before).all(axis=1)
        assert 0 < untouched.sum() < 4
        assert (changed(name)[~untouched].std(1) < before[~untouched].std(1)).all()


def test_an_empty_patch_stays_empty() -> None:
    nothing = np.zeros((4, 8, 8, 8), np.float32)
    every = augmented(**dict.fromkeys(INTENSITIES, 1.0))
    assert not change_intensities(nothing, every, rng()).any()


def test_a_served_patch_has_its_size_and_follows_from_its_number(patches: Patches) -> None:
    every = augmented(flip=0.5, rotate=1, scale=1, **dict.fromkeys(INTENSITIES, 0.5))
    source, plain = replace(patches, augment=every), replace(patches, augment=augmented())
    for number in range(6):
        sample = source.sample(number)
        image_CIJK, targets_CIJK = source.serve(sample)
        again = source.serve(sample)
        assert image_CIJK.shape == (4, *source.size_vox)
        assert targets_CIJK.shape == (3, *source.size_vox)
        assert np.array_equal(image_CIJK, again[0])
        assert np.array_equal(targets_CIJK, again[1])
        assert not np.array_equal(image_CIJK, plain.serve(sample)[0])


def test_a_patch_that_is_made_from_beyond_the_scan_is_empty_there(patches: Patches) -> None:
    every = augmented(scale=1)
    source = replace(patches, augment=every)
    sample = replace(source.sample(0), corner_vox=(-8, -8, -4))
    image_CIJK, _ = source.serve(sample)
    assert image_CIJK.shape == (4, *source.size_vox)
    assert np.isfinite(image_CIJK).all()
