"""Rules for label maps, on hand-made geometry: edema around a core around enhancement."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Class, Task
from gliotrail.imaging.labels import Labels
from gliotrail.segmentation.postprocess import Judged, Postprocess, find_rules, postprocessed

MM = (1.0, 1.0, 1.0)
EDEMA, CORE, ENHANCING = 1, 2, 3


def cube(labels_IJK: Labels, start: tuple[int, int, int], side: int, label: int) -> None:
    i, j, k = start
    labels_IJK[i : i + side, j : j + side, k : k + side] = label


@pytest.fixture
def tumour_IJK() -> Labels:
    """WT 20^3 = 8 ml, TC 12^3 = 1.728 ml, ET 6^3 = 0.216 ml, one in the other."""
    labels_IJK = np.zeros((40, 40, 40), np.uint8)
    cube(labels_IJK, (4, 4, 4), 20, EDEMA)
    cube(labels_IJK, (8, 8, 8), 12, CORE)
    cube(labels_IJK, (11, 11, 11), 6, ENHANCING)
    return labels_IJK


def test_small_components_become_what_is_around_them(tumour_IJK: Labels) -> None:
    wanted_IJK = tumour_IJK.copy()
    cube(tumour_IJK, (30, 30, 30), 3, ENHANCING)  # alone in the brain: gone, region by region
    cube(tumour_IJK, (5, 5, 5), 2, ENHANCING)  # in the edema: edema
    before_IJK = tumour_IJK.copy()
    each = dict.fromkeys(("WT", "TC", "ET"), 0.1)
    done_IJK = postprocessed(tumour_IJK, Postprocess(least_component_ml=each), BRATS, MM)
    assert np.array_equal(done_IJK, wanted_IJK)
    assert np.array_equal(tumour_IJK, before_IJK)


def test_the_largest_component_stays_however_small(tumour_IJK: Labels) -> None:
    rules = Postprocess(least_component_ml=dict.fromkeys(("WT", "TC", "ET"), 100.0))
    assert np.array_equal(postprocessed(tumour_IJK, rules, BRATS, MM), tumour_IJK)
    cube(tumour_IJK, (30, 30, 30), 6, EDEMA)
    assert postprocessed(tumour_IJK, rules, BRATS, MM).sum() == tumour_IJK[:30].sum()


def test_voxels_that_touch_at_a_corner_are_one_component(tumour_IJK: Labels) -> None:
    cube(tumour_IJK, (24, 24, 24), 2, EDEMA)
    rules = Postprocess(least_component_ml={"WT": 0.1})
    assert np.array_equal(postprocessed(tumour_IJK, rules, BRATS, MM), tumour_IJK)


def test_a_small_region_becomes_the_one_around_it(tumour_IJK: Labels) -> None:
    for least_ml, label in ((0.2, ENHANCING), (0.3, CORE)):
        rules = Postprocess(least_region_ml={"ET": least_ml})
        assert postprocessed(tumour_IJK, rules, BRATS, MM)[13, 13, 13] == label
    # twice the voxel's volume: not small any more
    rules = Postprocess(least_region_ml={"ET": 0.3})
    assert postprocessed(tumour_IJK, rules, BRATS, (1.0, 1.0, 2.0))[13, 13, 13] == ENHANCING


def test_holes_are_filled_with_the_region_s_own_label(tumour_IJK: Labels) -> None:
    cube(tumour_IJK, (5, 5, 5), 2, 0)
    cube(tumour_IJK, (13, 13, 13), 2, 0)
    rules = Postprocess(fill_holes=["WT"])
    done_IJK = postprocessed(tumour_IJK, rules, BRATS, MM)
    assert (done_IJK[5, 5, 5], done_IJK[13, 13, 13]) == (EDEMA, EDEMA)
    done_IJK = postprocessed(tumour_IJK, Postprocess(fill_holes=["ET", "WT"]), BRATS, MM)
    assert (done_IJK[5, 5, 5], done_IJK[13, 13, 13]) == (EDEMA, ENHANCING)


def test_where_there_are_no_regions_each_class_has_its_rules() -> None:
    classes = (Class(name="liver", code=1), Class(name="spleen", code=2))
    task = Task(channels=BRATS.channels[:1], classes=classes)
    labels_IJK = np.zeros((20, 20, 20), np.uint8)
    cube(labels_IJK, (2, 2, 2), 8, 1)
    cube(labels_IJK, (12, 12, 12), 2, 2)
    rules = Postprocess(least_region_ml={"spleen": 0.1})
    assert np.unique(postprocessed(labels_IJK, rules, task, MM)).tolist() == [0, 1]


def test_rules_are_found_where_they_help_and_only_there(tumour_IJK: Labels) -> None:
    pred_IJK = tumour_IJK.copy()
    cube(pred_IJK, (30, 30, 30), 6, EDEMA)
    low_grade_IJK = np.where(tumour_IJK == ENHANCING, np.uint8(CORE), tumour_IJK)
    speck_IJK = low_grade_IJK.copy()
    cube(speck_IJK, (12, 12, 12), 3, ENHANCING)
    cases = [Judged(pred_IJK, tumour_IJK, MM), Judged(speck_IJK, low_grade_IJK, MM)]
    rules, before, after = find_rules(cases, BRATS)
    assert rules.least_component_ml == {"WT": 0.3}
    assert rules.least_region_ml == {"ET": 0.1}
    assert not rules.fill_holes
    assert before == pytest.approx((1 + 16000 / (16000 + 216)) / 2 / 3 + 1 / 3 + 0.5 / 3)
    assert after == 1

    same = [Judged(tumour_IJK, tumour_IJK, MM)]
    assert find_rules(same, BRATS) == (Postprocess(), 1, 1)


@given(
    hnp.arrays(np.uint8, (6, 7, 8), elements=st.integers(0, 3)),
    st.dictionaries(st.sampled_from(("WT", "TC", "ET")), st.floats(0.001, 0.1)),
    st.dictionaries(st.sampled_from(("WT", "TC", "ET")), st.floats(0.001, 0.1)),
)
def test_dropping_adds_no_tumour_and_twice_is_once(
    labels_IJK: Labels, components: dict[str, float], wholes: dict[str, float]
) -> None:
    rules = Postprocess(least_component_ml=components, least_region_ml=wholes)
    once_IJK = postprocessed(labels_IJK, rules, BRATS, MM)
    for region in BRATS.regions:
        assert not (np.isin(once_IJK, region.labels) & ~np.isin(labels_IJK, region.labels)).any()
    assert np.array_equal(postprocessed(once_IJK, rules, BRATS, MM), once_IJK)
