import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gliotrail.errors import DataError
from gliotrail.imaging.geometry import Box, from_ras
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import (
    Prepared,
    PreparedCase,
    load_prepared,
    read_labels_patch,
    read_patch,
)
from tests.support.scans import (
    DEMO,
    edit_json,
    save,
    snapshot,
    split_section,
)

IMAGE, LABEL = "imagesTr/BRATS_009.nii.gz", "labelsTr/BRATS_009.nii.gz"


def file_array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def prepared_from(raw: Path, **changes: Any) -> Prepared:
    prepare(split_section(**changes), raw, raw.parent / "prepare", processes=1)
    return load_prepared(raw.parent / "prepare")


def whole(case: PreparedCase) -> Box:
    return Box((0, 0, 0), case.ras_shape_vox)


def test_the_demo_s_cases_are_whole_and_the_brain_boxes_are_known(prepared_demo: Prepared) -> None:
    assert prepared_demo.cases["BRATS_009"].box.size_vox == (128, 168, 50)
    assert prepared_demo.cases["BRATS_119"].box.size_vox == (137, 169, 31)
    for name, case in prepared_demo.cases.items():
        image = file_array(DEMO / f"imagesTr/{name}.nii.gz")
        labels = file_array(DEMO / f"labelsTr/{name}.nii.gz")
        got = read_patch(case, whole(case), "none")
        assert np.array_equal(np.moveaxis(got, 0, 3), image)
        assert np.array_equal(read_labels_patch(case, whole(case)), labels)
        assert case.voxels_per_label == tuple(np.bincount(labels.ravel()))
        assert case.image_CIJK.dtype == np.int16


def test_an_array_is_a_map_with_i_the_fastest(prepared_crops: Prepared) -> None:
    case = prepared_crops.cases["BRATS_009"]
    array = np.load(case.folder / "image.npy", mmap_mode="r")
    assert array.shape == (*case.box.size_vox, 4)
    assert array.flags.f_contiguous
    assert np.shares_memory(case.image_CIJK, case.image_CIJK)
    assert not case.image_CIJK.flags.writeable
    assert case.image_CIJK.shape == (4, *case.box.size_vox)


def test_means_and_stds_are_those_of_the_brain(prepared_demo: Prepared) -> None:
    case = prepared_demo.cases["BRATS_119"]
    image = np.moveaxis(file_array(DEMO / "imagesTr/BRATS_119.nii.gz").astype(np.float64), 3, 0)
    brain = (image != 0).any(axis=0)
    assert np.allclose(case.mean_C, [channel[brain].mean() for channel in image], rtol=1e-12)
    assert np.allclose(case.std_C, [channel[brain].std() for channel in image], rtol=1e-12)
    for k in range(image.shape[3]):
        for c in range(4):
            values = image[c, :, :, k][brain[:, :, k]]
            assert np.isclose(case.slice_mean_CK[c, k], values.mean(), rtol=1e-12)
            assert np.isclose(case.slice_std_CK[c, k], values.std(), rtol=1e-12)


def test_standardised_scans_have_mean_0_and_std_1_in_the_brain(prepared_demo: Prepared) -> None:
    case = prepared_demo.cases["BRATS_009"]
    raw = read_patch(case, whole(case), "none")
    brain = (raw != 0).any(axis=0)
    by_brain = read_patch(case, whole(case), "foreground").astype(np.float64)
    by_slice = read_patch(case, whole(case), "slice").astype(np.float64)
    assert not by_brain[:, ~brain].any()
    assert not by_slice[:, ~brain].any()
    for c in range(4):
        assert abs(by_brain[c][brain].mean()) < 1e-5
        assert abs(by_brain[c][brain].std() - 1) < 1e-5
        for k in (0, 17, 49):
            values = by_slice[c, :, :, k][brain[:, :, k]]
            assert abs(values.mean()) < 1e-5
            assert abs(values.std() - 1) < 1e-5


def naive_patch(case: PreparedCase, box: Box, standardize: str) -> np.ndarray:
    """`read_patch` voxel by voxel."""
    patch = np.zeros((4, *box.size_vox), np.float32)
    for index in np.ndindex(box.size_vox):
        place = np.add(index, box.start_vox)
        inside = place - case.box.start_vox
        if (inside < 0).any() or (inside >= case.box.size_vox).any():
            continue
        values = case.image_CIJK[:, *inside].astype(np.float32)
        k = inside[2]
        mean, std = {
            "none": (np.zeros(4), np.ones(4)),
            "foreground": (case.mean_C, case.std_C),
            "slice": (case.slice_mean_CK[:, k], case.slice_std_CK[:, k]),
        }[standardize]
        if values.any():
            for c in np.flatnonzero(std):
                patch[:, *index][c] = (values[c] - np.float32(mean[c])) / np.float32(std[c])
    return patch


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    corner=st.tuples(st.integers(-6, 66), st.integers(-6, 66), st.integers(-6, 18)),
    size=st.tuples(*[st.integers(1, 6)] * 3),
    standardize=st.sampled_from(["foreground", "slice", "none"]),
)
def test_a_patch_anywhere_is_what_the_scan_holds_there(
    prepared_crops: Prepared,
    corner: tuple[int, int, int],
    size: tuple[int, int, int],
    standardize: str,
) -> None:
    case = prepared_crops.cases["BRATS_119"]
    box = Box.at(corner, size)
    expected = naive_patch(case, box, standardize)
    for fused in (False, True):
        got = read_patch(case, box, standardize, fused)
        assert got.dtype == np.float32
        assert np.array_equal(got, expected)
    labels = np.pad(read_labels_patch(case, whole(case)), 20)
    expected = labels[box.shifted((20, 20, 20)).slices]
    assert np.array_equal(read_labels_patch(case, box), expected)


@pytest.mark.parametrize("codes", ["LPS", "SAR", "IPL"])
def test_a_scan_in_another_orientation_gives_the_same_arrays(
    raw_crops: Path, prepared_crops: Prepared, codes: str
) -> None:
    for name in (IMAGE, LABEL):
        image = nib.load(raw_crops / name)
        here = nib.orientations.io_orientation(image.affine)
        turn = nib.orientations.ornt_transform(here, nib.orientations.axcodes2ornt(codes))
        nib.save(image.as_reoriented(turn), raw_crops / name)
    expected = prepared_crops.cases["BRATS_009"]
    case = prepared_from(raw_crops).cases["BRATS_009"]
    assert np.array_equal(case.image_CIJK, expected.image_CIJK)
    assert np.array_equal(case.labels_IJK, expected.labels_IJK)
    assert np.allclose(case.affine_ras, expected.affine_ras)
    assert case.box == expected.box
    back = from_ras(read_labels_patch(case, whole(case)), case.file_affine)
    assert np.array_equal(back, file_array(raw_crops / LABEL))
    assert back.shape == case.file_shape_vox


def test_channels_are_stored_in_the_usual_order(raw_crops: Path, prepared_crops: Prepared) -> None:
    order = [2, 0, 3, 1]  # of T1gd, FLAIR, T2w, T1w
    for name in (IMAGE, IMAGE.replace("009", "119")):
        image = nib.load(raw_crops / name)
        save(raw_crops / name, np.asarray(image.dataobj)[..., order], image.affine)
    names = dict(zip("0123", ("t1gd", "FLAIR", "T2w", "T1w"), strict=True))
    edit_json(raw_crops / "dataset.json", lambda values: values.update(modality=names))
    case = prepared_from(raw_crops).cases["BRATS_009"]
    assert case.channels == ("FLAIR", "T1w", "T1gd", "T2w")
    assert np.array_equal(case.image_CIJK, prepared_crops.cases["BRATS_009"].image_CIJK)


@pytest.mark.parametrize("value", [0.5, 40_000, -40_000, 1e10])
def test_values_that_are_no_int16_are_kept_as_float32(raw_crops: Path, value: float) -> None:
    image = nib.load(raw_crops / IMAGE)
    array = np.asarray(image.dataobj).copy()
    array[1, 2, 3, 1] = value
    save(raw_crops / IMAGE, array, image.affine)
    case = prepared_from(raw_crops).cases["BRATS_009"]
    assert case.image_CIJK.dtype == np.float32
    assert np.array_equal(np.moveaxis(read_patch(case, whole(case), "none"), 0, 3), array)


def test_values_beyond_float32_are_refused(raw_crops: Path) -> None:
    image = nib.load(raw_crops / IMAGE)
    array = np.asarray(image.dataobj).astype(np.float64)
    array[1, 2, 3, 1] = 1e300
    save(raw_crops / IMAGE, array, image.affine)
    with pytest.raises(DataError, match=r"BRATS_009.*: voxel values: wanted within float32"):
        prepared_from(raw_crops)


def test_a_tumour_outside_the_brain_is_inside_the_box(raw_crops: Path) -> None:
    image, label = nib.load(raw_crops / IMAGE), nib.load(raw_crops / LABEL)
    array, labels = np.zeros(image.shape, np.float32), np.zeros(label.shape, np.uint8)
    array[10:20, 10:20, 10:20] = 5
    labels[30, 9, 12] = 3
    save(raw_crops / IMAGE, array, image.affine)
    save(raw_crops / LABEL, labels, label.affine)
    case = prepared_from(raw_crops).cases["BRATS_009"]
    assert case.box == Box((10, 9, 10), (31, 20, 20))
    assert case.std_C.tolist() == [0] * 4
    assert not read_patch(case, whole(case), "foreground").any()
    assert not read_patch(case, whole(case), "slice").any()
    assert read_labels_patch(case, whole(case))[30, 9, 12] == 3


def test_a_scan_without_a_label_is_prepared_and_in_no_part(raw_crops: Path) -> None:
    shutil.copy(raw_crops / IMAGE, raw_crops / "imagesTr/NEW.nii.gz")
    new = "./imagesTr/NEW.nii.gz"
    edit_json(raw_crops / "dataset.json", lambda values: values.update(test=[new]))
    prepared = prepared_from(raw_crops, test=0.5)
    case = prepared.cases["NEW"]
    assert {*prepared.split.training, *prepared.split.test} == {"BRATS_009", "BRATS_119"}
    assert case.labels_IJK is None
    assert case.voxels_per_label is None
    assert case.label_sha256 is None
    with pytest.raises(DataError, match="NEW: labels: wanted some, got an unlabelled case"):
        read_labels_patch(case, whole(case))


def test_a_case_is_cheap_to_send_and_opens_its_maps_anew(prepared_demo: Prepared) -> None:
    case = prepared_demo.cases["BRATS_009"]
    assert case.image_CIJK.nbytes > 1e6
    content = pickle.dumps(case)
    assert len(content) < 10_000
    sent = pickle.loads(content)
    assert "image_CIJK" not in vars(sent)
    assert np.array_equal(sent.image_CIJK, case.image_CIJK)
    assert sent.box == case.box


def test_the_same_scans_give_the_same_bytes_from_one_process_or_two(
    prepared_crops: Prepared, raw_crops: Path
) -> None:
    out = raw_crops.parent / "prepare"
    prepare(split_section(), raw_crops, out, processes=2)
    assert snapshot(out) == snapshot(prepared_crops.cases["BRATS_009"].folder.parents[1])


def test_the_fingerprint_tells_what_the_scans_are_like(prepared_demo: Prepared) -> None:
    folder = prepared_demo.cases["BRATS_009"].folder.parents[1]
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    one, everything = fingerprint["cases"]["BRATS_009"], fingerprint["all"]
    assert one["shape_vox"] == [240, 240, 50]
    assert one["spacing_mm"] == [1, 1, 1]
    assert one["orientation"] == "RAS"
    assert one["voxels"] == {"edema": 117182, "non_enhancing": 27943, "enhancing": 42101}
    image = file_array(DEMO / IMAGE)
    brain = (image != 0).any(axis=3)
    assert one["foreground_ml"] == brain.sum() / 1000
    for c, name in enumerate(("FLAIR", "T1w", "T1gd", "T2w")):
        values = np.sort(image[..., c][brain])
        assert np.isclose(one["intensity"][name]["mean"], values.mean(dtype=np.float64))
        assert one["intensity"][name]["min"] == values[0]
        assert one["intensity"][name]["max"] == values[-1]
        assert abs(one["intensity"][name]["percentile_50"] - np.median(values)) <= 1
    assert everything["cases"] == everything["labelled"] == 2
    assert everything["orientations"] == {"RAS": 2}
    assert everything["voxels"]["edema"] == 117182 + 62778
    assert everything["shape_vox"]["median"] == [240, 240, 40.5]
    assert everything["cases_with"] == {"edema": 2, "non_enhancing": 2, "enhancing": 2}


def test_what_prepare_did_not_write_is_not_loaded(prepared_crops: Prepared, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split.json: no such file; run the stage prepare first"):
        load_prepared(tmp_path)
    shutil.copytree(prepared_crops.cases["BRATS_009"].folder.parents[1], tmp_path / "copy")
    folder = tmp_path / "copy/cases/BRATS_009"
    np.save(folder / "image.npy", np.zeros((2, 2, 2, 4), np.int16))
    with pytest.raises(DataError, match=r"image.npy: shape: wanted \(64, 64, 32, 4\), got \(2, 2"):
        load_prepared(tmp_path / "copy").cases["BRATS_009"].image_CIJK  # noqa: B018 - it opens
    (folder / "image.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"image.npy: prepared array: got"):
        load_prepared(tmp_path / "copy").cases["BRATS_009"].image_CIJK  # noqa: B018 - it opens
    (folder.parent / "BRATS_119/case.json").write_text("{")
    with pytest.raises(DataError, match=r"case.json: not JSON: got"):
        load_prepared(tmp_path / "copy")
    edit_json(folder / "case.json", lambda values: values.update(format=0))
    with pytest.raises(DataError, match=r"BRATS_009: format: wanted 2; run the stage prepare"):
        load_prepared(tmp_path / "copy")


def test_an_unknown_way_to_standardise_is_refused(prepared_crops: Prepared) -> None:
    case = prepared_crops.cases["BRATS_009"]
    with pytest.raises(DataError, match="standardize: wanted foreground, slice or none, got 'z'"):
        read_patch(case, case.box, "z")
