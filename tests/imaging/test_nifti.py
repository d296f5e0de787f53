import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gliotrail.dataset.brats import SCHEMES
from gliotrail.errors import DataError
from gliotrail.imaging.geometry import spacing_mm
from gliotrail.imaging.header import odd_in, read_header
from gliotrail.imaging.nifti import (
    in_ras,
    read_channels,
    read_image,
    read_labels,
    write_image,
    write_labels,
    write_probabilities,
)
from tests.support.scans import DEMO, rewrite, save

CROP = DEMO / "crops/BRATS_119_crop_image.nii.gz"
CROP_LABEL = DEMO / "crops/BRATS_119_crop_label.nii.gz"
GEOMETRY = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c",
            "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y",
            "srow_z")  # fmt: skip
OBLIQUE = np.array([[0, -0.8, 0.1, 20], [-1.1, 0, 0, 5], [0.1, 0.2, -2.9, -7], [0, 0, 0, 1.0]])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image to spoil."""
    values = np.random.default_rng(1).integers(0, 900, (5, 6, 7, 4)).astype(np.int16)
    return save(tmp_path / "image.nii.gz", values, OBLIQUE)


@pytest.fixture
def label(tmp_path: Path) -> Path:
    """Labels on the grid of `image`, to spoil."""
    values = np.random.default_rng(2).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    return save(tmp_path / "label.nii.gz", values, OBLIQUE)


def poke(path: Path, offset: int, layout: str, *values: float) -> None:
    """Overwrite header fields at a byte offset of the NIfTI-1 header."""
    rewrite(path, lambda content: struct.pack_into(layout, content, offset, *values))


def test_a_real_scan_is_read_as_nibabel_reads_it() -> None:
    scan, reference = read_image(CROP), nib.load(CROP)
    assert np.array_equal(scan.array, reference.get_fdata())
    assert scan.array.dtype == np.float32
    assert np.array_equal(scan.affine, reference.affine)
    assert scan.spacing_mm == (1, 1, 1)
    assert read_labels(CROP_LABEL, like=scan).array.dtype == np.uint8


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_every_kind_of_file_is_read(
    tmp_path: Path, kind: type, order: str, dtype: str, name: str
) -> None:
    values = np.random.default_rng(3).integers(0, 100, (3, 4, 5, 4)).astype(order + dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(values.dtype)
    nib.save(kind(values, OBLIQUE, header), tmp_path / name)
    scan = read_image(tmp_path / name)
    assert np.array_equal(scan.array, values)
    assert scan.array.dtype == np.dtype(dtype)
    assert np.allclose(scan.affine, OBLIQUE, atol=1e-6)


def test_slope_and_intercept_are_honoured(image: Path) -> None:
    raw = read_image(image).array
    poke(image, 112, "<ff", 0.5, -3.0)
    assert np.array_equal(read_image(image).array, raw * 0.5 - 3)
    assert np.array_equal(read_image(image).array, nib.load(image).get_fdata())


def test_a_quaternion_rounded_to_float32_is_read(tmp_path: Path) -> None:
    """b, c, d of a real export: their squares' sum is 1 + 4.8e-7."""
    path = save(tmp_path / "scan.nii.gz", np.ones((3, 4, 5), np.int16), OBLIQUE)
    bcd = np.float32([0.1, 0.3, 0.9487])
    bcd = (bcd / np.sqrt(np.square(bcd.astype(float)).sum()) * (1 + 2.4e-7)).astype(np.float32)
    poke(path, 252, "<hhfff", 1, 0, *bcd.tolist())
    poke(path, 76, "<f", 1)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path)
    affine = read_header(path).affine
    assert np.allclose(affine[:3, :3].T @ affine[:3, :3], np.diag(np.square(spacing_mm(affine))))


def test_a_quaternion_far_from_one_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", np.ones((3, 4, 5), np.int16), OBLIQUE)
    poke(path, 252, "<hhfff", 1, 0, 0.8, 0.8, 0.8)
    with pytest.raises(DataError, match="affine"):
        read_header(path)


def test_pixdim_0_of_0_means_1_and_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", np.ones((3, 4, 5), np.int16))
    poke(path, 252, "<hhfff", 1, 0, 0, 0, 0)
    poke(path, 76, "<f", 0)
    assert np.array_equal(read_header(path).affine, np.eye(4))
    assert read_header(path).odd == ("pixdim[0] is 0, which means 1",)


def test_forms_that_disagree_are_told_once_and_kept(tmp_path: Path) -> None:
    """The sform says RAS, the qform its left-right mirror image."""
    paths = [tmp_path / f"{name}.nii.gz" for name in "ab"]
    for path in paths:
        file = nib.Nifti1Image(np.ones((3, 4, 5), np.int16), np.eye(4))
        file.set_qform(np.diag([-1, 1, 1, 1]), 1)
        nib.save(file, path)
    odd = odd_in(map(read_header, paths))
    assert odd == [
        f"{paths[0]} and 1 more: sform and qform disagree; the sform is used, both are kept"
    ]
    write_labels(tmp_path / "m.nii.gz", np.ones((3, 4, 5), np.uint8), read_image(paths[0], 1))
    mask = nib.load(tmp_path / "m.nii.gz")
    assert np.array_equal(mask.get_sform(), np.eye(4))
    assert np.array_equal(mask.get_qform(), np.diag([-1, 1, 1, 1]))


def test_a_header_extension_is_passed_over(image: Path) -> None:
    before = read_image(image).array
    extended = nib.load(image)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"who, when"))
    nib.save(extended, image)
    assert read_header(image).offset_bytes > 352
    assert np.array_equal(read_image(image).array, before)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_a_mask_keeps_the_input_s_geometry_byte_for_byte(
    tmp_path: Path, kind: type, order: str
) -> None:
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(np.ones((5, 6, 7, 4), order + "i2"), OBLIQUE, header)
    image.header.set_qform(OBLIQUE, code=3, strip_shears=True)  # a qform unlike the sform
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "image.nii.gz")
    scan = read_image(tmp_path / "image.nii.gz")
    labels = np.random.default_rng(4).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    write_labels(tmp_path / "mask.nii.gz", labels, scan)
    probabilities = np.random.default_rng(4).random((5, 6, 7, 3), np.float32)
    write_probabilities(tmp_path / "p.nii.gz", probabilities, scan)
    kept = nib.load(tmp_path / "image.nii.gz").header
    mask, probability = nib.load(tmp_path / "mask.nii.gz"), nib.load(tmp_path / "p.nii.gz")
    for field in GEOMETRY:
        assert mask.header[field].tobytes() == kept[field].tobytes(), field
        assert probability.header[field].tobytes() == kept[field].tobytes(), field
    assert np.array_equal(probability.dataobj, probabilities)
    assert mask.header.get_data_dtype() == np.uint8
    assert np.array_equal(mask.dataobj, labels)
    assert np.array_equal(mask.affine, scan.affine)
    assert np.array_equal(read_labels(tmp_path / "mask.nii.gz", like=scan).array, labels)


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    scan = read_image(CROP)
    labels = read_labels(CROP_LABEL).array
    write_labels(tmp_path / "one.nii.gz", labels, scan)
    write_labels(tmp_path / "other.nii.gz", np.ascontiguousarray(labels), scan)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "other.nii.gz").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((5, 6), np.uint8), "shape: wanted 5 x 6 x 7, got 5 x 6"),
        (np.full((5, 6, 7), 4, np.uint8), "label values: .* got 4"),
    ],
)
def test_a_mask_that_is_none_is_not_written_over_a_good_one(
    tmp_path: Path, image: Path, labels: np.ndarray, message: str
) -> None:
    (tmp_path / "mask.nii").write_text("a good one")
    with pytest.raises(DataError, match=message):
        write_labels(tmp_path / "mask.nii", labels, read_image(image))
    assert (tmp_path / "mask.nii").read_text() == "a good one"


@pytest.mark.parametrize(
    ("scheme", "codes"),
    [("msd", [0, 1, 2, 3]), ("brats21", [0, 2, 1, 4]), ("brats23", [0, 2, 1, 3])],
)
def test_a_mask_is_written_in_the_codes_of_a_scheme(tmp_path, image, scheme, codes):
    labels = np.arange(5 * 6 * 7).reshape(5, 6, 7) % 4
    of_labels = {label: code for code, label in SCHEMES[scheme].items()}
    write_labels(tmp_path / "mask.nii.gz", labels.astype(np.uint8), read_image(image), of_labels)
    written = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert np.array_equal(written, np.array(codes)[labels])


def test_a_file_a_channel_is_one_scan_on_the_first_file_s_grid(tmp_path, image):
    whole = nib.load(image)
    paths = []
    for channel, axes in enumerate(("RAS", "LPS", "SAL", "PIR")):
        one = nib.Nifti1Image(np.asarray(whole.dataobj)[..., channel], whole.affine)
        start = nib.orientations.io_orientation(one.affine)
        there = nib.orientations.axcodes2ornt(axes)
        turned = one.as_reoriented(nib.orientations.ornt_transform(start, there))
        paths.append(tmp_path / f"{channel}.nii.gz")
        nib.save(turned, paths[-1])
    for first in range(4):
        order = [(first + n) % 4 for n in range(4)]
        scan = read_channels([paths[n] for n in order])
        assert scan.header.raw == read_header(paths[first]).raw
        assert np.array_equal(scan.affine, read_header(paths[first]).affine)
        expected = in_ras(read_image(image)).array[..., order]
        assert np.array_equal(in_ras(scan).array, expected)


def test_files_on_different_grids_are_no_scan(tmp_path, image):
    one = save(tmp_path / "one.nii.gz", np.ones((5, 6, 7), np.int16), OBLIQUE)
    thicker = OBLIQUE @ np.diag([1, 1, 1.1, 1])
    moved = save(tmp_path / "moved.nii.gz", np.ones((5, 6, 7), np.int16), thicker)
    other = save(tmp_path / "other.nii.gz", np.ones((5, 6, 8), np.int16), OBLIQUE)
    for path, message in ((moved, "affine: wanted that of"), (other, "shape: wanted")):
        with pytest.raises(DataError, match=message) as caught:
            read_channels([one, path])
        assert str(path) in str(caught.value)
        assert str(one) in str(caught.value)
    with pytest.raises(DataError, match="shape: wanted I x J x K, got 5 x 6 x 7 x 4"):
        read_channels([image, one])


def test_a_new_image_is_read_back(tmp_path):
    for name in ("new.nii", "new.nii.gz"):
        values = np.random.default_rng(1).integers(-9, 900, (5, 6, 7, 4)).astype(np.int16)
        write_image(tmp_path / name, np.asfortranarray(values), OBLIQUE)
        scan = read_image(tmp_path / name)
        assert np.array_equal(scan.array, values)
        assert scan.array.dtype == np.int16
        assert np.allclose(scan.affine, OBLIQUE, atol=1e-6)
        assert nib.load(tmp_path / name).header.get_xyzt_units()[0] == "mm"


def test_reading_leaves_a_file_as_it_was(image: Path) -> None:
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    read_image(image).array[:] = 0
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before
