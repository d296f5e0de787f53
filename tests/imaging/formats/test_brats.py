import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gliotrail.dataset.brats import BRATS, is_brats
from gliotrail.dataset.patients import patient_of
from gliotrail.errors import DataError, ParamsError
from gliotrail.imaging.formats.brats import import_brats
from gliotrail.imaging.nifti import Scan, read_image, read_labels
from tests.support.brain import CHANNELS, CLASSES, REGIONS, from_msd
from tests.support.scans import CASES, DEMO, save, snapshot, with_values

OLD = {"FLAIR": "_flair", "T1w": "_t1", "T1gd": "_t1ce", "T2w": "_t2"}
NEW = {"FLAIR": "-t2f", "T1w": "-t1n", "T1gd": "-t1c", "T2w": "-t2w"}
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def demo(case: str, kind: str) -> Scan:
    """A demo scan or its labels; `BRATS_119` is the whole slab, `BRATS_119_crop` its crop."""
    if case.endswith("crop"):
        path = DEMO / f"crops/{case}_{kind}.nii.gz"
    else:
        path = DEMO / f"{kind}sTr/{case}.nii.gz"
    return read_labels(path) if kind == "label" else read_image(path)


def lay_out_brats(folder: Path, case: str, name: str, suffixes: dict[str, str], end: str) -> None:
    """A demo patient as BraTS would give it: LPS, a file a channel, BraTS' codes."""
    scheme, seg = ("brats21", "_seg") if suffixes is OLD else ("brats23", "-seg")
    scan, truth = demo(case, "image"), demo(case, "label")
    affine = scan.affine @ TO_LPS
    affine[:3, 3] = scan.affine[:3] @ [*(n - 1 for n in scan.shape_vox[:2]), 0, 1]
    for channel, suffix in suffixes.items():
        values = scan.array[::-1, ::-1, :, CHANNELS.index(channel)]
        save(folder / name / f"{name}{suffix}{end}", values, affine)
    codes = from_msd(truth.array, scheme).astype(np.int16)
    save(folder / name / f"{name}{seg}{end}", codes[::-1, ::-1], affine)


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """Two crops as BraTS 2021 has them; the test's own, to spoil."""
    for n, case in enumerate(CASES):
        lay_out_brats(tmp_path / "brats", f"{case}_crop", f"BraTS2021_0000{n}", OLD, ".nii.gz")
    return tmp_path / "brats"


@pytest.fixture
def refused(brats: Path, tmp_path: Path) -> Callable[[str], None]:
    """Is the import refused in one line, leaving nothing behind?"""

    def check(message: str) -> None:
        before = snapshot(tmp_path)
        with pytest.raises(DataError, match=message) as caught:
            import_brats(brats, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert str(brats) in str(caught.value)
        assert snapshot(tmp_path) == before

    return check


@pytest.mark.parametrize(
    ("suffixes", "end", "patients"),
    [
        (OLD, ".nii.gz", {"BraTS2021_00000": "BRATS_009_crop", "BraTS2021_00001": "BRATS_119"}),
        (OLD, ".nii", {"Brats17_CBICA_AAB_1": "BRATS_009_crop"}),
        (NEW, ".nii.gz", {"BraTS-GLI-00000-000": "BRATS_009_crop"}),
    ],
)
def test_real_patients_come_back_voxel_for_voxel(tmp_path, suffixes, end, patients):
    for name, case in patients.items():
        lay_out_brats(tmp_path / "in/HGG", case, name, suffixes, end)
    dataset = import_brats(tmp_path / "in", tmp_path / "out")
    assert dataset.channel_order == (0, 1, 2, 3)
    assert dataset.task.regions == BRATS.regions
    assert [case.name for case in dataset.cases] == list(patients)
    for case in dataset.cases:
        image, was = read_image(case.image), demo(patients[case.name], "image")
        assert np.array_equal(image.array, was.array)
        assert np.array_equal(image.affine, was.affine)
        labels, truth = read_labels(case.label, like=image), demo(patients[case.name], "label")
        assert np.array_equal(labels.array, truth.array)
        assert set(np.unique(labels.array)) == {0, 1, 2, 3}


def test_the_notice_says_which_codes_became_which(brats, tmp_path):
    import_brats(brats, tmp_path / "out")
    notice = (tmp_path / "out/PROVENANCE.md").read_text()
    assert "1 became 2, 2 became 1, 4 became 3 (brats21)." in notice
    assert str(tmp_path) not in notice


def test_patients_without_labels_are_for_testing(brats, tmp_path):
    (brats / "BraTS2021_00001/BraTS2021_00001_seg.nii.gz").unlink()
    cases = import_brats(brats, tmp_path / "out").cases
    assert [case.label is None for case in cases] == [False, True]
    assert cases[1].image == tmp_path / "out/imagesTs/BraTS2021_00001.nii.gz"


def test_files_of_one_patient_may_be_turned_differently(brats, tmp_path):
    expected = import_brats(brats, tmp_path / "expected")
    path = brats / "BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz"
    nib.save(nib.as_closest_canonical(nib.load(path)), path)
    turned = import_brats(brats, tmp_path / "out")
    for one, other in zip(expected.cases, turned.cases, strict=True):
        assert one.image.read_bytes() == other.image.read_bytes()


def test_a_scan_that_would_lose_its_labels_is_an_error(brats, refused):
    """As BraTS 2020's patient 355, whose labels are W39_1998.09.19_Segm.nii."""
    path = brats / "BraTS2021_00001/BraTS2021_00001_seg.nii.gz"
    path.rename(path.with_name("W39_1998.09.19_Segm.nii.gz"))
    refused(
        r"1 scans without labels: .*got BraTS2021_00001 beside W39_1998.09.19_Segm.nii.gz; "
        r".*rename them to BraTS2021_00001_seg"
    )


def test_kaggles_folders_of_a_file_s_name_are_opened(brats, tmp_path):
    expected = import_brats(brats, tmp_path / "expected")
    for path in sorted(brats.glob("*/*.nii.gz")):
        folder = path.with_name(path.name.removesuffix(".gz"))
        folder.mkdir()
        path.rename(folder / f"00000001_{path.name.rpartition('_')[2]}")
    cases = import_brats(brats, tmp_path / "out").cases
    for one, other in zip(expected.cases, cases, strict=True):
        assert one.image.read_bytes() == other.image.read_bytes()
        assert one.label.read_bytes() == other.label.read_bytes()


def as_release(brats, names):
    """Rename the two scans, in the files' names of 2023 and later."""
    suffixes = {"_flair": "-t2f", "_t1ce": "-t1c", "_t1": "-t1n", "_t2": "-t2w", "_seg": "-seg"}
    for path in sorted(brats.glob("*/*.nii.gz")):
        new = names[int(path.parent.name[-1])]
        old = path.name.removesuffix(".nii.gz").removeprefix(path.parent.name)
        (brats / new).mkdir(exist_ok=True)
        path.rename(brats / new / f"{new}{suffixes[old]}.nii.gz")
    for folder in brats.glob("BraTS2021_*"):
        folder.rmdir()


def test_after_treatment_the_cavity_is_a_class_or_background(brats, tmp_path, capsys):
    as_release(brats, ["BraTS-GLI-00005-100", "BraTS-GLI-00005-101"])
    dataset = import_brats(brats, tmp_path / "out")
    assert dataset.task.class_names == (*CLASSES, "resection_cavity")
    assert dataset.task.region_labels == REGIONS
    assert {patient_of(case.name) for case in dataset.cases} == {"BraTS-GLI-00005"}
    assert "code 4) is a class of its own, resection_cavity" in capsys.readouterr().err
    dataset = import_brats(brats, tmp_path / "again", cavity="background")
    assert is_brats(dataset.task)
    assert "code 4) is background" in capsys.readouterr().err
    codes = np.unique(nib.load(dataset.cases[0].label).dataobj).tolist()
    assert set(codes) <= {0, 1, 2, 3}


def test_a_release_that_names_don_t_tell_wants_a_scheme(brats, tmp_path):
    as_release(brats, ["BraTS-PED-00001-000", "BraTS-PED-00002-000"])
    with pytest.raises(ParamsError, match=r"wanted scans of one of brats21, .*say --scheme$"):
        import_brats(brats, tmp_path / "out")
    dataset = import_brats(brats, tmp_path / "out", "brats24-ped")
    assert dataset.task.class_names == (*CLASSES, "cystic")
    assert dataset.task.region_labels["TC"] == (2, 3, 4)


def test_files_of_other_names_are_told(brats, tmp_path, capsys):
    shutil.copy(
        brats / "BraTS2021_00000/BraTS2021_00000_seg.nii.gz", brats / "W39_1998.09.19_Segm.nii.gz"
    )
    (brats / "._BraTS2021_00000_seg.nii.gz").write_bytes(b"finder")
    assert len(import_brats(brats, tmp_path / "out").cases) == 2
    assert "passed over 1 files of other names, such as" in capsys.readouterr().err


def test_a_missing_channel_is_named(brats, refused):
    (brats / "BraTS2021_00001/BraTS2021_00001_t1ce.nii.gz").unlink()
    refused("BraTS2021_00001: files: wanted four channels, got no BraTS2021_00001_t1ce")


def test_codes_of_another_year_are_refused(brats, refused):
    path = brats / "BraTS2021_00001/BraTS2021_00001_seg.nii.gz"
    with_values(path, lambda codes: np.where(codes == 4, 3, codes))
    refused(r"_seg\.nii\.gz: label values: wanted among 0, 1, 2, 4, got 3")


def test_channels_on_another_grid_are_refused(brats, refused):
    path = brats / "BraTS2021_00000/BraTS2021_00000_t2.nii.gz"
    with_values(path, lambda values: values[:-1])
    refused("shape: wanted 64 x 64 x 32 as .*_flair")


def test_labels_on_another_grid_are_refused(brats, refused):
    path = brats / "BraTS2021_00000/BraTS2021_00000_seg.nii.gz"
    with_values(path, lambda values: values, np.eye(4))
    refused("affine: wanted that of .*mm away")


def test_a_scan_that_comes_twice_is_refused(brats, refused):
    shutil.copytree(brats / "BraTS2021_00000", brats / "again/BraTS2021_00000")
    refused("BraTS2021_00000: scan: wanted each once, got also")


def test_a_file_packed_and_unpacked_is_refused(brats, refused):
    path = brats / "BraTS2021_00000/BraTS2021_00000_t1.nii.gz"
    path.with_suffix("").write_bytes(b"")
    refused("file: wanted each once, got .*_t1.nii$")


def test_a_name_that_could_be_no_folder_is_refused(brats, refused):
    for path in (brats / "BraTS2021_00000").iterdir():
        path.rename(path.with_name(path.name.replace("BraTS2021", "BraTS 2021")))
    refused("case name: wanted letters, digits")


def test_a_damaged_file_is_refused(brats, refused):
    path = brats / "BraTS2021_00001/BraTS2021_00001_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    refused("_flair.nii.gz: truncated file")


def test_a_folder_without_scans_is_refused(brats, refused):
    for path in brats.rglob("*.nii.gz"):
        path.unlink()
    refused("no BraTS scans: wanted NAME_flair")


def test_a_folder_that_is_there_is_never_replaced(brats, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.docx").write_text("years of work")
    with pytest.raises(DataError, match="folder: wanted a new one"):
        import_brats(brats, tmp_path / "out")
    assert (tmp_path / "out/thesis.docx").read_text() == "years of work"
