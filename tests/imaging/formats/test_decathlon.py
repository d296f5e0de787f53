import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from gliotrail.dataset.brats import BRATS, is_brats
from gliotrail.errors import DataError
from gliotrail.imaging.formats.decathlon import read_dataset
from tests.support.scans import DEMO, edit_json

IMAGE = "./imagesTr/BRATS_009.nii.gz"


def spoil(raw: Path, key: str, value: Any) -> None:
    """Set one key of dataset.json."""
    edit_json(raw / "dataset.json", lambda values: values.update({key: value}))


def refused(raw: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(raw)
    assert str(raw) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_demo_is_read() -> None:
    dataset = read_dataset(DEMO)
    assert [case.name for case in dataset.cases] == ["BRATS_009", "BRATS_119"]
    assert dataset.channel_order == (0, 1, 2, 3)
    assert len(dataset.files) == 5
    assert all(case.label for case in dataset.cases)


def test_cases_come_sorted_and_those_to_be_tested_without_labels(raw_crops: Path) -> None:
    (raw_crops / "imagesTs").mkdir()
    shutil.copy(raw_crops / IMAGE, raw_crops / "imagesTs/ALPHA.nii.gz")

    def change(values: dict[str, Any]) -> None:
        values["training"].reverse()
        values["training"][0].pop("label")  # BRATS_119
        values["test"] = ["./imagesTs/ALPHA.nii.gz"]

    edit_json(raw_crops / "dataset.json", change)
    cases = read_dataset(raw_crops).cases
    assert [case.name for case in cases] == ["ALPHA", "BRATS_009", "BRATS_119"]
    assert [case.label is not None for case in cases] == [False, True, False]


def test_channels_are_found_in_any_order(raw_crops: Path) -> None:
    spoil(raw_crops, "modality", {"0": "t1ce", "1": "t2", "2": "t1", "3": "flair"})
    assert read_dataset(raw_crops).channel_order == (3, 2, 0, 1)


def test_what_macos_leaves_behind_is_passed_over(raw_crops: Path) -> None:
    (raw_crops / "labelsTr/._BRATS_777.nii.gz").write_bytes(b"finder")
    (raw_crops / "imagesTr/._BRATS_777.nii.gz").write_bytes(b"finder")
    assert len(read_dataset(raw_crops).cases) == 2


def test_files_may_be_links_as_dvc_makes_them(raw_crops: Path, tmp_path: Path) -> None:
    (raw_crops / IMAGE).rename(tmp_path / "cache")
    (raw_crops / IMAGE).symlink_to(tmp_path / "cache")
    assert read_dataset(raw_crops).cases[0].image.is_file()


@pytest.mark.parametrize("name", ["dataset.json", "imagesTr/BRATS_119.nii.gz"])
def test_a_missing_file_is_refused(raw_crops: Path, name: str) -> None:
    (raw_crops / name).unlink()
    refused(raw_crops, f"{name}: no such file")


def test_a_label_that_is_listed_but_missing_is_refused(raw_crops: Path) -> None:
    (raw_crops / "labelsTr/BRATS_119.nii.gz").unlink()
    refused(raw_crops, r"labelsTr/BRATS_119.nii.gz: no such file; .*dataset.json lists it")


def test_a_label_without_its_image_is_refused(raw_crops: Path) -> None:
    shutil.copy(raw_crops / "labelsTr/BRATS_009.nii.gz", raw_crops / "labelsTr/BRATS_500.nii.gz")
    refused(raw_crops, r"labelsTr/BRATS_500.nii.gz: a label without its image: wanted .*imagesTr")


@pytest.mark.parametrize("path", ["/etc/passwd", "../raw/imagesTr/BRATS_009.nii.gz", 7, "a\0b"])
def test_a_path_that_leads_out_of_the_folder_is_refused(raw_crops: Path, path: object) -> None:
    spoil(raw_crops, "training", [{"image": path}])
    refused(raw_crops, "dataset.json: path: wanted one inside this folder, got")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000])
def test_a_description_that_is_no_json_object_is_refused(raw_crops: Path, text: str) -> None:
    (raw_crops / "dataset.json").write_bytes(text.encode("latin-1"))
    refused(raw_crops, r"dataset.json: (not JSON|content: wanted a JSON object)")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("modality", None, 'modality: wanted names numbered "0", "1", .., got None'),
        ("modality", {"0": "FLAIR", "2": "T1w"}, "modality: wanted names numbered"),
        ("labels", {"0": "background", "1": "a", "2": "a"}, "class or region a is there twice"),
        ("labels", {"1": "liver"}, "labels: wanted a background of 0"),
        ("training", [], "cases: wanted at least one for training, got none"),
        ("file_ending", ".mha", "file_ending: wanted .nii.gz or .nii, got .mha"),
        ("training", "all", "training: wanted a list, got 'all'"),
        ("training", [{"label": "x"}], "training entry: wanted an image"),
        ("training", [{"image": IMAGE}] * 2, "case names: wanted each once, got BRATS_009 twice"),
        ("training", [{"image": "./imagesTr/_.nii.gz"}], "case name: wanted letters"),
    ],
)
def test_a_description_that_can_t_be_is_refused(
    raw_crops: Path, key: str, value: object, message: str
) -> None:
    spoil(raw_crops, key, value)
    refused(raw_crops, message)


def test_labels_in_another_order_are_told_apart_by_their_names(raw_crops: Path) -> None:
    names = {"0": "background", "1": "non-enhancing tumor", "2": "edema", "3": "enhancing tumour"}
    spoil(raw_crops, "labels", names)
    task = read_dataset(raw_crops).task
    assert is_brats(task)
    assert task.labels_of_codes == {0: 0, 1: 2, 2: 1, 3: 3}


def lay_out_as_nnu_net(raw: Path, apart: bool) -> None:
    """The crops as nnU-Net's raw data, one file a channel or one for all."""
    names = {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}
    labels = {"background": 0, "edema": 1, "non_enhancing": 2, "enhancing": 3}
    description = {"channel_names": names, "labels": labels, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    for path in sorted((raw / "imagesTr").iterdir()) if apart else []:
        scan = nib.load(path)
        for n in range(4):
            channel = nib.Nifti1Image(np.asarray(scan.dataobj)[..., (n + 1) % 4], scan.affine)
            nib.save(channel, path.with_name(path.name.replace(".nii", f"_{n:04d}.nii")))
        path.unlink()


@pytest.mark.parametrize("apart", [False, True])
def test_nnu_nets_layout_is_read(raw_crops: Path, apart: bool) -> None:
    lay_out_as_nnu_net(raw_crops, apart)
    dataset = read_dataset(raw_crops)
    assert [case.name for case in dataset.cases] == ["BRATS_009", "BRATS_119"]
    assert dataset.task.channel_names == BRATS.channel_names
    files = [path.name[-11:-7] for path in dataset.cases[0].images]
    assert files == (["0003", "0000", "0001", "0002"] if apart else ["_009"])


def test_nnu_nets_missing_channel_and_label_are_named(raw_crops: Path) -> None:
    lay_out_as_nnu_net(raw_crops, apart=True)
    gone = raw_crops / "imagesTr/BRATS_119_0002.nii.gz"
    gone.rename(gone.with_name("kept"))
    refused(raw_crops, r"BRATS_119: files: wanted 4 files.*got no BRATS_119_0002.nii.gz")
    gone.with_name("kept").rename(gone)
    (raw_crops / "labelsTr/BRATS_009.nii.gz").unlink()
    refused(raw_crops, r"BRATS_009: label: wanted a file, got none")
