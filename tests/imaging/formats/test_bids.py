"""BIDS: scans by patient and session, labels below derivatives, and what names them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gliotrail.dataset.patients import patient_of
from gliotrail.errors import DataError
from gliotrail.imaging.formats.detect import import_any
from tests.support.scans import save

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])  # LPS
RNG = np.random.default_rng(5)


def scan(folder: Path, name: str, *suffixes: str) -> None:
    for suffix in suffixes:
        values = np.zeros((10, 12, 8), np.int16)
        values[2:8, 2:9, 1:7] = RNG.integers(1, 900, (6, 7, 6))
        save(folder / f"anat/{name}_{suffix}.nii.gz", values, AFFINE)


def labels(folder: Path, name: str, codes: tuple[int, ...]) -> None:
    values = np.zeros((10, 12, 8), np.uint8)
    for n, code in enumerate(codes):
        values[3 + n, 4:6, 2:4] = code
    save(folder / f"anat/{name}.nii.gz", values, AFFINE)


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Two patients, of whom one was seen twice."""
    root = tmp_path / "bids"
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.9"}))
    drawn = root / "derivatives/manual"
    for session in ("ses-01", "ses-02"):
        at, name = f"sub-01/{session}", f"sub-01_{session}"
        scan(root / at, name, "T1w", "ce-gad_T1w", "FLAIR")
        labels(drawn / at, f"{name}_dseg", (1, 4))
    scan(root / "sub-02", "sub-02", "T1w", "ce-gad_T1w", "FLAIR")
    labels(drawn / "sub-02", "sub-02_dseg", (4,))
    return root


def test_scans_are_by_session_labels_are_found_and_patients_stay_together(
    bids: Path, tmp_path: Path
) -> None:
    dataset = import_any(bids, tmp_path / "out")
    assert [case.name for case in dataset.cases] == ["sub-01_ses-01", "sub-01_ses-02", "sub-02"]
    assert [patient_of(case.name) for case in dataset.cases] == ["sub-01", "sub-01", "sub-02"]
    assert dataset.task.channel_names == ("FLAIR", "T1gd", "T1w")
    assert dataset.task.class_names == ("label_1", "label_4")
    case = dataset.cases[0]
    image, was = (
        nib.load(case.image),
        nib.load(bids / "sub-01/ses-01/anat/sub-01_ses-01_FLAIR.nii.gz"),
    )
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.array_equal(image.dataobj[..., 0], np.asarray(was.dataobj)[::-1, ::-1])
    drawn = nib.load(bids / "derivatives/manual/sub-01/ses-01/anat/sub-01_ses-01_dseg.nii.gz")
    codes = np.array([0, 1, 0, 0, 2], np.uint8)[np.asarray(drawn.dataobj)]
    assert np.array_equal(np.asarray(nib.load(case.label).dataobj), codes[::-1, ::-1])


def test_classes_are_named_by_dseg_tsv(bids: Path, tmp_path: Path) -> None:
    table = "index\tname\n0\tBackground\n1\tEdema part\n4\tEnhancing\n"
    (bids / "derivatives/manual/dseg.tsv").write_text(table)
    dataset = import_any(bids, tmp_path / "out")
    assert dataset.task.class_names == ("Edema_part", "Enhancing")


def test_one_mask_is_named_by_its_entity(bids: Path, tmp_path: Path) -> None:
    for path in sorted(bids.glob("derivatives/**/*_dseg.nii.gz")):
        values = (np.asarray(nib.load(path).dataobj) > 0).astype(np.uint8)
        save(path.with_name(path.name.replace("_dseg", "_label-lesion_mask")), values, AFFINE)
        path.unlink()
    assert import_any(bids, tmp_path / "out").task.class_names == ("lesion",)


def test_a_scan_without_labels_is_for_testing_and_told(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bids / "derivatives/manual/sub-02/anat/sub-02_dseg.nii.gz").unlink()
    cases = import_any(bids, tmp_path / "out").cases
    assert [case.label is None for case in cases] == [False, False, True]
    assert "1 scans without labels in derivatives, such as sub-02" in capsys.readouterr().err


def lost_channel(bids: Path) -> None:
    (bids / "sub-02/anat/sub-02_FLAIR.nii.gz").unlink()


def twice(bids: Path) -> None:
    scan(bids / "sub-02", "sub-02_run-2", "T1w")


def no_labels(bids: Path) -> None:
    for path in bids.glob("derivatives/**/*_dseg.nii.gz"):
        path.unlink()


def lost_scan(bids: Path) -> None:
    labels(bids / "derivatives/manual/sub-07", "sub-07_dseg", (1,))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lost_channel, r"sub-02: channels: wanted FLAIR, T1gd, T1w, got no FLAIR"),
        (twice, r"sub-02: T1w: wanted one file, got also .*; leave one of them"),
        (no_labels, r"derivatives: labels: wanted _dseg or _mask files, got none but background"),
        (lost_scan, r"sub-07_dseg.nii.gz: 1 labels without their scans: wanted a scan of sub-07"),
    ],
)
def test_what_would_be_lost_is_an_error_in_one_line(
    bids: Path, tmp_path: Path, spoil: object, told: str
) -> None:
    spoil(bids)  # type: ignore[operator]
    with pytest.raises(DataError, match=told) as caught:
        import_any(bids, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
