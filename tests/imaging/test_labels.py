import nibabel as nib
import numpy as np
import pytest

from gliotrail.dataset.brats import BRATS, SCHEMES
from gliotrail.dataset.task import IGNORED
from gliotrail.errors import DataError
from gliotrail.imaging.labels import to_labels
from tests.support.brain import class_masks, from_msd, to_msd, voxels_per_label
from tests.support.scans import DEMO


@pytest.mark.parametrize("scheme", ["msd", "brats21", "brats23"])
def test_a_scheme_and_back_changes_nothing(scheme: str) -> None:
    labels = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    codes = from_msd(labels, scheme)
    assert set(codes.ravel().tolist()) == set(SCHEMES[scheme])
    assert np.array_equal(to_msd(codes, scheme), labels)


def test_the_brats_code_4_is_no_decathlon_label() -> None:
    with pytest.raises(DataError, match=r"there.nii: label values: .*0, 1, 2, 3.*got 4"):
        to_labels(np.array([0, 4]), BRATS.labels_of_codes, where="there.nii")


def test_masks_and_counts_agree_with_the_demo_s_provenance() -> None:
    labels = np.asarray(nib.load(DEMO / "labelsTr/BRATS_119.nii.gz").dataobj)
    assert voxels_per_label(labels)[1:] == (62778, 16837, 5682)
    assert class_masks(labels).sum(axis=(1, 2, 3)).tolist() == [62778, 16837, 5682]


def test_codes_up_to_rounding_of_a_scale_factor_are_codes() -> None:
    values = np.array([0, 0.9999999, 2.0000002, 3.00000004])
    assert to_labels(values, BRATS.labels_of_codes).tolist() == [0, 1, 2, 3]


def test_a_value_between_codes_is_told_with_all_its_digits() -> None:
    with pytest.raises(DataError, match=r"wanted among 0, 1, 2, 3, got 1\.0051$"):
        to_labels(np.array([0, 1.0051]), BRATS.labels_of_codes)


@pytest.mark.parametrize("value", [-1, 256, 300])
def test_what_no_label_file_has_is_refused(value: int) -> None:
    with pytest.raises(DataError, match=f"got {value}"):
        to_labels(np.array([0, value]), BRATS.labels_of_codes)


def test_codes_may_be_any_and_one_may_be_ignored() -> None:
    codes = {0: 0, 7: 1, 200: 2, 9: IGNORED}
    assert to_labels(np.array([0, 7, 200, 9]), codes).tolist() == [0, 1, 2, IGNORED]
    assert voxels_per_label(np.array([0, 1, 2, IGNORED], np.uint8))[:3] == (1, 1, 1)
