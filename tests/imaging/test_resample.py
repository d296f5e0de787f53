import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail.imaging.nifti import read_image
from gliotrail.imaging.resample import resample, resample_labels, shape_at, thick_axis
from tests.support.scans import DEMO

SPACINGS_MM = st.tuples(*[st.floats(0.3, 6)] * 3)
SHAPES = st.tuples(*[st.integers(1, 12)] * 3)


def centre_mm(image: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Centre of mass from the grid's own centre."""
    places = np.indices(image.shape).reshape(3, -1)
    from_middle = places - (np.array(image.shape)[:, None] - 1) / 2
    return (from_middle * image.ravel()).sum(1) / image.sum() * spacing_mm


def blob(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """A smooth blob of 8 mm, off the centre by (6, -5, 4) mm."""
    places = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    return np.exp(-(((places * spacing_mm - (6, -5, 4)) / 8) ** 2).sum(-1))


@settings(deadline=None, max_examples=60)
@given(SHAPES, SPACINGS_MM, st.integers(0, 2))
def test_a_mirrored_scan_becomes_the_mirrored_result(shape, spacing_mm, axis):
    image = np.random.default_rng(3).normal(size=shape)
    new = shape_at(shape, spacing_mm, (1, 1, 1))
    one = resample(image, spacing_mm, new, (1, 1, 1))
    other = resample(np.flip(image, axis), spacing_mm, new, (1, 1, 1))
    assert one.shape == new
    assert np.abs(np.flip(one, axis) - other).max() < 1e-5


@settings(deadline=None, max_examples=60)
@given(SHAPES, SPACINGS_MM, SPACINGS_MM)
def test_values_stay_between_the_least_and_the_largest(shape, spacing_mm, new_mm):
    image = np.random.default_rng(3).normal(size=shape)
    new = resample(image, spacing_mm, (7, 5, 9), new_mm)
    assert image.min() - 1e-5 <= new.min()
    assert new.max() <= image.max() + 1e-5


def test_nothing_changes_on_the_same_grid():
    image = np.random.default_rng(3).integers(0, 999, (5, 6, 7)).astype(np.int16)
    same = resample(image, (1.5, 1, 3), (5, 6, 7), (1.5, 1, 3))
    assert np.array_equal(same, image)
    assert same.dtype == np.float32


@pytest.mark.parametrize(
    "spacing_mm", [(0.5, 1, 1.5), (0.9375, 0.9375, 2.8), (2, 2, 2), (1, 0.4, 1)]
)
def test_a_blob_stays_where_it_is_in_mm(spacing_mm):
    shape = shape_at((64, 64, 64), (1, 1, 1), (1, 1, 1))
    own = tuple(round(n / length) for n, length in zip(shape, spacing_mm, strict=True))
    truth = blob(own, spacing_mm)
    new = resample(truth, spacing_mm, shape, (1, 1, 1))
    assert np.abs(centre_mm(new, (1, 1, 1)) - centre_mm(truth, spacing_mm)).max() < 0.05
    voxel_ml = np.prod(spacing_mm)
    assert new.sum() == pytest.approx(truth.sum() * voxel_ml, rel=0.01)
    assert np.abs(new - blob(shape, (1, 1, 1))).max() < 0.06
    back = resample(new, (1, 1, 1), own, spacing_mm)
    assert np.abs(back - truth).max() < 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_taken_as_they_are_and_planes_interpolated(axis):
    """As nnU-Net: order 0 along voxels that are over 3 times as long."""
    image = np.moveaxis(np.random.default_rng(3).normal(size=(4, 6, 5)), 2, axis)
    thick_mm = tuple(4.0 if n == axis else 1.0 for n in range(3))
    fine_mm = tuple(1.0 if n == axis else 0.5 for n in range(3))
    new = resample(image, thick_mm, shape_at(image.shape, thick_mm, fine_mm), fine_mm)
    assert new.shape[axis] == 20
    planes = np.moveaxis(new, axis, 0)
    for k in range(20):
        assert np.array_equal(planes[k], planes[k // 4 * 4])  # one slice, four times
    assert not np.array_equal(planes[0], planes[4])


def test_thick_means_over_three_times_along_one_axis_alone():
    assert thick_axis((1, 1, 3.1)) == 2
    assert thick_axis((1, 1, 3)) is None
    assert thick_axis((3.3, 1, 3.3)) is None
    assert thick_axis((4, 1, 3)) == 0


@pytest.mark.parametrize("new_mm", [(1, 1, 1), (0.7, 0.7, 2), (2, 2, 2)])
def test_labels_stay_labels_and_thick_slices_keep_them(new_mm):
    labels = np.random.default_rng(3).integers(0, 4, (12, 12, 6)).astype(np.uint8)
    labels = labels.repeat(3, 0).repeat(3, 1)
    shape = shape_at(labels.shape, (1, 1, 5), new_mm)
    new = resample_labels(labels, (1, 1, 5), shape, new_mm)
    assert set(np.unique(new)) <= set(np.unique(labels))
    if new_mm == (1, 1, 1):
        assert np.array_equal(new, labels.repeat(5, 2))


def test_voxels_that_get_larger_are_means_not_samples():
    checks = np.indices((40, 4, 4)).sum(0) % 2 * 100.0
    coarse = resample(checks, (0.5, 1, 1), (20, 4, 4), (1, 1, 1))
    assert coarse[1:-1].std() < 1e-3  # a sample of every second voxel would be 0 or 100
    assert coarse[1:-1].mean() == pytest.approx(50)


def test_a_real_scan_comes_back_from_finer_voxels():
    image = read_image(DEMO / "crops/BRATS_009_crop_image.nii.gz").array[..., 0]
    fine = resample(image, (1, 1, 1), (128, 128, 64), (0.5, 0.5, 0.5))
    back = resample(fine, (0.5, 0.5, 0.5), (64, 64, 32), (1, 1, 1))
    assert np.corrcoef(back.ravel(), image.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "wanted"),
    [
        ((240, 240, 155), (1, 1, 1), (240, 240, 155)),
        ((256, 256, 24), (0.9375, 0.9375, 6.5), (240, 240, 156)),
        ((3, 1, 5), (0.1, 0.2, 1), (1, 1, 5)),
    ],
)
def test_the_new_grid_covers_the_same_mm(shape, spacing_mm, wanted):
    assert shape_at(shape, spacing_mm, (1, 1, 1)) == wanted
