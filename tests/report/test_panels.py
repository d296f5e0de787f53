import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliotrail.report.panels import cut, foreground_mask, grey_window, greys, scale_bar_mm, size_mm

SHAPE = (4, 5, 6)
VOXEL = st.tuples(*(st.integers(0, n - 1) for n in SHAPE))


@given(VOXEL)
def test_each_voxel_is_where_a_radiologist_looks_for_it(voxel):
    volume = np.zeros(SHAPE)
    volume[voxel] = 1
    i, j, k = voxel
    # columns from the patient's right (large i), rows from the front (large j) or the top (large k)
    right, front, top = SHAPE[0] - 1 - i, SHAPE[1] - 1 - j, SHAPE[2] - 1 - k
    assert np.argwhere(cut(volume, "axial", k)).tolist() == [[front, right]]
    assert np.argwhere(cut(volume, "coronal", j)).tolist() == [[top, right]]
    assert np.argwhere(cut(volume, "sagittal", i)).tolist() == [[top, front]]


def test_a_plane_has_the_size_that_its_spacing_says():
    spacing_mm = (1.0, 2.0, 5.0)
    assert size_mm(SHAPE, spacing_mm, "axial") == (4, 10)
    assert size_mm(SHAPE, spacing_mm, "coronal") == (4, 30)
    assert size_mm(SHAPE, spacing_mm, "sagittal") == (10, 30)


def test_the_brain_is_found_in_raw_and_in_standardised_intensities_alike(slab):
    image_CIJK, _ = slab
    raw = image_CIJK[:, 50:190, 30:210, 5:15].astype(np.float32)
    truth = (raw != 0).any(axis=0)
    mean = raw.mean(axis=(1, 2), keepdims=True)
    by_slice = (raw - mean) / raw.std(axis=(1, 2), keepdims=True)
    for image in (raw, raw.astype(np.int16), by_slice):
        assert (foreground_mask(image) == truth).all()


def test_a_crop_without_background_is_all_brain_and_one_with_a_corner_of_it_is_not():
    image = np.random.default_rng(0).normal(size=(4, 8, 9, 3))
    assert foreground_mask(image).all()
    image[:, :2, :3, 1] = -7
    outside = ~foreground_mask(image)
    assert outside[:2, :3, 1].all()
    assert outside.sum() == 6


def test_an_empty_image_does_not_fail():
    image = np.zeros((4, 3, 3, 3))
    brain = foreground_mask(image)
    assert brain.all()
    low, high = grey_window(image[0], brain)
    assert high > low


def test_greys_are_black_outside_the_brain_and_reach_from_black_to_white_in_it(slab):
    image = slab[0]
    brain = foreground_mask(image)
    grey = greys(image[0], brain, grey_window(image[0], brain))
    assert (grey[~brain] == 0).all()
    assert grey[brain].min() == 0
    assert grey[brain].max() == 1
    assert 0.3 < np.median(grey[brain]) < 0.7


@pytest.mark.parametrize(
    ("most_mm", "bar_mm"), [(120, 50), (50, 50), (49, 20), (16, 10), (8, 5), (0.7, 1)]
)
def test_the_scale_bar_is_round_and_fits(most_mm, bar_mm):
    assert scale_bar_mm(most_mm) == bar_mm
