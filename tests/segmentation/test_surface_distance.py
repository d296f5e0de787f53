import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail.errors import DataError
from gliotrail.segmentation.surface_distance import areas_mm2, hd95_mm, surface_dice

SPACING_MM = (1.0, 2.0, 3.0)
SHAPE = (24, 20, 16)
seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=30)


def cuboid(start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def blobs(seed: int, shape=(9, 8, 7)) -> tuple[np.ndarray, np.ndarray]:
    """Two random masks with smooth and ragged places; neither is empty."""
    rng = np.random.default_rng(seed)
    field = rng.random((2, *shape))
    field[:, 1:] += field[:, :-1] * rng.random()
    masks = field > np.quantile(field, 0.3 + 0.6 * rng.random())
    masks[:, 4, 4, 4] = True
    return masks[0], masks[1]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift_vox", [1, 3, 7])
def test_two_voxels_are_as_far_apart_as_their_centres(axis, shift_vox):
    here, there = [4, 4, 4], [4, 4, 4]
    there[axis] += shift_vox
    masks = cuboid(tuple(here), (1, 1, 1)), cuboid(tuple(there), (1, 1, 1))
    assert hd95_mm(*masks, SPACING_MM) == shift_vox * SPACING_MM[axis]


def test_distances_are_in_mm_along_a_diagonal():
    a, b = cuboid((2, 2, 2), (1, 1, 1)), cuboid((5, 4, 3), (1, 1, 1))
    assert hd95_mm(a, b, SPACING_MM) == pytest.approx(math.sqrt(3**2 + 4**2 + 3**2))


def test_two_cuboids_apart():
    """Along i from 4..7 to 12..15: each face voxel is 5 to 8 mm away, and all are surface."""
    a, b = cuboid((4, 4, 4), (4, 2, 2)), cuboid((12, 4, 4), (4, 2, 2))
    assert hd95_mm(a, b, (1, 1, 1)) == pytest.approx(np.percentile([5, 6, 7, 8] * 4, 95))
    assert hd95_mm(a, b, (3, 1, 1)) == pytest.approx(np.percentile([15, 18, 21, 24] * 4, 95))


def test_hd95_is_the_larger_direction_and_forgives_one_voxel_in_twenty():
    """A 6x6x6 cube has 152 surface voxels: a far voxel is 0.7 % of them, but 100 % of its own."""
    cube, far = cuboid((2, 2, 2), (6, 6, 6)), cuboid((20, 2, 2), (1, 1, 1))
    assert hd95_mm(cube, cube | far, (1, 1, 1)) == 0
    alone = hd95_mm(cuboid((7, 2, 2), (1, 1, 1)), cube, (1, 1, 1))
    assert alone == pytest.approx(
        np.percentile(
            [
                math.dist((7, 2, 2), (i, j, k))
                for i in range(2, 8)
                for j in range(2, 8)
                for k in range(2, 8)
                if {i, j, k} & {2, 7}
            ],
            95,
        )
    )


def test_beyond_the_volume_is_outside():
    """A slab's mask that is cut by the volume's border has its surface there."""
    whole = np.ones((5, 5, 5), bool)
    core = np.zeros_like(whole)
    core[2, 2, 2] = True
    assert hd95_mm(whole, core, (1, 1, 1)) == pytest.approx(math.sqrt(12))
    padded = [np.pad(mask, 2) for mask in (whole, core)]
    assert hd95_mm(*padded, (1, 1, 1)) == hd95_mm(whole, core, (1, 1, 1))
    assert surface_dice(*padded, (1, 1, 1), 1) == surface_dice(whole, core, (1, 1, 1), 1)


def test_areas_of_neighbourhoods_by_hand():
    """Bit b of a code is the corner (b >> 2 & 1, b >> 1 & 1, b & 1) of the neighbourhood."""
    si, sj, sk = SPACING_MM
    areas = areas_mm2(SPACING_MM)
    assert areas[0] == areas[255] == 0
    assert areas[0b00001111] == pytest.approx(sj * sk)  # all i = 0: a plane across i
    assert areas[0b00110011] == pytest.approx(si * sk)
    assert areas[0b01010101] == pytest.approx(si * sj)
    corner = math.hypot(sj * sk, si * sk, si * sj) / 8  # a triangle through three middles
    assert areas[0b00000001] == pytest.approx(corner)
    assert areas[0b10000001] == pytest.approx(2 * corner)
    edge = math.hypot(sj * sk, si * sk) / 2  # an edge along k is cut off by a rectangle
    assert areas[0b00000011] == pytest.approx(edge)
    # bent pieces: around three voxels in an L across i, and a chain of four along i, j, k
    assert areas[0b00000111] == pytest.approx(sj * sk / 2 + 3 * corner)
    ends = math.hypot(si * sk, si * sj) / 4 + math.hypot(sj * sk, si * sk) / 4
    assert areas[0b00011101] == pytest.approx(4 * corner + ends)
    np.testing.assert_allclose(areas, areas[::-1])


def test_areas_follow_the_axes():
    """Exchanging two axes of the spacing exchanges those axes of every neighbourhood."""
    codes = np.arange(256)
    bits = codes[:, None] >> np.arange(8) & 1
    turned = (bits.reshape(-1, 2, 2, 2).transpose(0, 3, 1, 2).reshape(-1, 8) << np.arange(8)).sum(1)
    si, sj, sk = SPACING_MM
    np.testing.assert_allclose(areas_mm2((sk, si, sj))[turned], areas_mm2(SPACING_MM))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_dice_of_one_voxel_and_two_by_hand(axis):
    """One voxel: 8 corner pieces. Two: 8 corner pieces and 4 edge pieces where they meet.

    The two share 8 points; the far 4 corners of the two are one voxel away from the one.
    """
    beside = [4, 4, 4]
    beside[axis] += 1
    one = cuboid((4, 4, 4), (1, 1, 1))
    two = one | cuboid((beside[0], beside[1], beside[2]), (1, 1, 1))
    faces_mm2 = np.prod(SPACING_MM) / np.array(SPACING_MM)
    corner_mm2 = 8 * np.linalg.norm(faces_mm2 / 8)
    edge_mm2 = 4 * np.linalg.norm(np.delete(faces_mm2, axis) / 2)
    whole_mm2 = corner_mm2 + corner_mm2 + edge_mm2
    below = surface_dice(one, two, SPACING_MM, 0.99 * SPACING_MM[axis])
    assert below == pytest.approx((whole_mm2 - corner_mm2 / 2) / whole_mm2)
    assert surface_dice(one, two, SPACING_MM, SPACING_MM[axis]) == 1


@quick
@given(seeds, st.floats(0.3, 5), st.floats(0.3, 5), st.floats(0.3, 5))
def test_measures_are_symmetric_and_in_range(seed, si, sj, sk):
    a, b = blobs(seed)
    spacing = (si, sj, sk)
    distance = hd95_mm(a, b, spacing)
    diagonal = math.hypot(*(s * (n - 1) for s, n in zip(spacing, a.shape, strict=True)))
    assert 0 <= distance <= diagonal + 1e-9
    assert hd95_mm(b, a, spacing) == pytest.approx(distance, abs=1e-12)
    dice = [surface_dice(a, b, spacing, t) for t in (0, 0.5, 2, diagonal * 2)]
    assert 0 <= dice[0] <= dice[1] <= dice[2] <= dice[3] == pytest.approx(1, abs=1e-12)
    assert surface_dice(b, a, spacing, 0.5) == pytest.approx(dice[1], abs=1e-12)


@quick
@given(seeds)
def test_a_perfect_prediction_is_0_mm_away_and_1(seed):
    a, _ = blobs(seed)
    assert hd95_mm(a, a.copy(), SPACING_MM) == 0
    assert surface_dice(a, a.copy(), SPACING_MM, 0) == 1


@quick
@given(seeds)
def test_turning_flipping_moving_and_scaling_change_nothing_else(seed):
    a, b = blobs(seed)
    wanted = hd95_mm(a, b, SPACING_MM), surface_dice(a, b, SPACING_MM, 1.5)
    turned = [np.ascontiguousarray(np.flip(m, 1).transpose(2, 0, 1)) for m in (a, b)]
    spacing = (SPACING_MM[2], SPACING_MM[0], SPACING_MM[1])
    moved = [np.pad(m, ((3, 1), (0, 5), (7, 0))) for m in (a, b)]
    doubled = tuple(2 * s for s in SPACING_MM)
    assert (hd95_mm(*turned, spacing), surface_dice(*turned, spacing, 1.5)) == pytest.approx(wanted)
    assert (hd95_mm(*moved, SPACING_MM), surface_dice(*moved, SPACING_MM, 1.5)) == wanted
    assert hd95_mm(a, b, doubled) == 2 * wanted[0]
    assert surface_dice(a, b, doubled, 3) == wanted[1]


@quick
@given(seeds)
def test_hd95_is_that_of_all_pairs_of_surface_voxels(seed):
    """Slowly, from the definition: no box, no tree, no erosion."""
    a, b = blobs(seed, (6, 5, 5))

    def surface_mm(mask):
        padded = np.pad(mask, 1)
        return np.array([
            (i, j, k) for i, j, k in np.argwhere(mask)
            if not all(padded[1 + i + di, 1 + j + dj, 1 + k + dk]
                       for di, dj, dk in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0),
                                          (0, 0, 1), (0, 0, -1)))
        ]) * SPACING_MM  # fmt: skip

    pairs = np.linalg.norm(surface_mm(a)[:, None] - surface_mm(b)[None], axis=2)
    slow = max(np.percentile(pairs.min(axis), 95) for axis in (0, 1))
    assert hd95_mm(a, b, SPACING_MM) == pytest.approx(slow, abs=1e-12)


def test_empty_masks():
    some, none = cuboid((2, 2, 2), (2, 2, 2)), np.zeros(SHAPE, bool)
    assert hd95_mm(none, none, SPACING_MM) is None
    assert hd95_mm(some, none, SPACING_MM) is None
    assert hd95_mm(none, some, SPACING_MM) is None
    assert surface_dice(none, none, SPACING_MM, 1) is None
    assert surface_dice(some, none, SPACING_MM, 1) == 0
    assert surface_dice(none, some, SPACING_MM, 1) == 0


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, math.nan, 1), (1, -2, 1)])
def test_a_spacing_that_can_t_be_is_refused(spacing):
    mask = cuboid((2, 2, 2), (2, 2, 2))
    with pytest.raises(DataError, match="spacing: wanted three lengths in mm"):
        hd95_mm(mask, mask, spacing)
    with pytest.raises(DataError, match="shape of the prediction"):
        surface_dice(mask, mask[1:], SPACING_MM, 1)
