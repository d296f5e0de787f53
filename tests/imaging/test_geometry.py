import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail.imaging.geometry import Box, axis_codes, from_ras, spacing_mm, to_ras

ORIENTATIONS = [
    "".join(axes)
    for order in itertools.permutations(("LR", "PA", "IS"))
    for axes in itertools.product(*order)
]
SIDES = st.tuples(*[st.integers(-4, 6)] * 3)
SMALL_SIDES = st.tuples(*[st.integers(-1, 2)] * 3)


def affine_of(codes: str, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """An affine whose axes point to `codes`, with an odd origin."""
    turn = nib.orientations.axcodes2ornt(tuple(codes))
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(turn.astype(int)):
        affine[world, axis] = sign * spacing_mm[axis]
    affine[:3, 3] = (-17.5, 3.25, 90)
    return affine


def box(a: tuple[int, ...], b: tuple[int, ...]) -> Box:
    i, j, k = (tuple(sorted(pair)) for pair in zip(a, b, strict=True))
    return Box((i[0], j[0], k[0]), (i[1], j[1], k[1]))


def voxels(one: Box) -> set[tuple[int, ...]]:
    return set(itertools.product(*[range(s.start, s.stop) for s in one.slices]))


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_scan_in_any_orientation_becomes_ras_keeps_its_places_and_comes_back(codes: str) -> None:
    array = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2)
    affine = affine_of(codes, (0.5, 1.0, 3.0))
    ras, affine_ras = to_ras(array, affine)
    assert axis_codes(affine_ras) == "RAS"
    assert sorted(spacing_mm(affine_ras)) == [0.5, 1.0, 3.0]
    for index in np.ndindex(array.shape[:3]):
        xyz_mm = affine @ [*index, 1]
        there = np.rint(np.linalg.solve(affine_ras, xyz_mm)).astype(int)
        assert (ras[tuple(there[:3])] == array[index]).all()
    assert np.array_equal(from_ras(ras, affine), array)


@settings(deadline=None)
@given(
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.floats(-0.3, 0.3)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
)
def test_an_oblique_scan_comes_back_too(
    codes: str, turns: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    affine = affine_of(codes, (1.0, 2.0, 0.7))
    affine[:3, :3] = nib.eulerangles.euler2mat(*turns) @ affine[:3, :3]
    array = np.arange(np.prod(shape)).reshape(shape)
    ras, affine_ras = to_ras(array, affine)
    assert (np.diag(affine_ras)[:3] > 0).all()
    assert np.array_equal(from_ras(ras, affine), array)


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_two_boxes_share_exactly_the_voxels_that_both_hold(
    a: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...], d: tuple[int, ...]
) -> None:
    one, other = box(a, b), box(c, d)
    shared = voxels(one) & voxels(other)
    assert voxels(one.meet(other)) == shared
    assert one.touches(other) == bool(shared) == other.touches(one)
    assert np.prod(one.size_vox) == len(voxels(one))


@settings(deadline=None, max_examples=50)
@given(SMALL_SIDES, SMALL_SIDES, st.integers(0, 2))
def test_growing_adds_every_voxel_within_the_margin(
    a: tuple[int, ...], b: tuple[int, ...], margin: int
) -> None:
    one = box(a, b)
    if 0 in one.size_vox:
        return
    near = itertools.product(range(-margin, margin + 1), repeat=3)
    grown = {tuple(np.add(v, step)) for step in near for v in voxels(one)}
    assert voxels(one.grown(margin)) == grown


@settings(deadline=None)
@given(st.sets(st.tuples(*[st.integers(0, 4)] * 3)))
def test_the_box_around_a_mask_is_the_smallest_that_holds_it(places: set[tuple[int, ...]]) -> None:
    mask = np.zeros((5, 5, 5), bool)
    for place in places:
        mask[place] = True
    around = Box.around(mask)
    assert mask[around.slices].sum() == len(places)
    for axis in range(3):
        for side in (0, -1):
            face = [slice(None)] * 3
            face[axis] = slice(side, None if side else 1)
            assert not places or mask[around.slices][tuple(face)].any()


def test_an_empty_mask_has_an_empty_box() -> None:
    assert Box.around(np.zeros((2, 2, 2), bool)).size_vox == (0, 0, 0)
