import nibabel as nib
import numpy as np
import pytest

from gliotrail.errors import DataError
from gliotrail.imaging.labels import (
    SCHEMES,
    channel_order,
    check_codes,
    class_masks,
    from_msd,
    to_msd,
    voxels_per_label,
)
from tests.support.scans import DEMO


def test_channels_are_found_under_the_names_of_any_scheme() -> None:
    assert channel_order(["FLAIR", "T1w", "t1gd", "T2w"]) == (0, 1, 2, 3)
    assert channel_order(["t1n", "t1c", "t2w", "t2f"]) == (3, 0, 1, 2)


@pytest.mark.parametrize("names", [["FLAIR"], ["FLAIR", "T1w", "T1w", "T2w"], ["a", "b", "c", "d"]])
def test_other_channels_are_refused(names: list[str]) -> None:
    with pytest.raises(DataError, match=r"channel.*wanted .*T1gd.*got"):
        channel_order(names)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_and_back_changes_nothing(scheme: str) -> None:
    labels = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    codes = from_msd(labels, scheme)
    assert set(codes.ravel().tolist()) == set(SCHEMES[scheme])
    assert np.array_equal(to_msd(codes, scheme), labels)


def test_the_brats_code_4_is_no_decathlon_label() -> None:
    with pytest.raises(DataError, match=r"there.nii: label values: .*0, 1, 2, 3.*got 4"):
        check_codes(np.array([0, 4]), where="there.nii")


def test_masks_and_counts_agree_with_the_demo_s_provenance() -> None:
    labels = np.asarray(nib.load(DEMO / "labelsTr/BRATS_119.nii.gz").dataobj)
    assert voxels_per_label(labels)[1:] == (62778, 16837, 5682)
    assert class_masks(labels).sum(axis=(1, 2, 3)).tolist() == [62778, 16837, 5682]
