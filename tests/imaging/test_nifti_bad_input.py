import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gliotrail.errors import DataError
from gliotrail.imaging import nifti
from gliotrail.imaging.nifti import (
    read_image,
    read_labels,
)
from tests.support.scans import DEMO, rewrite, save

CROP = DEMO / "crops/BRATS_119_crop_image.nii.gz"
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


def refused(path: Path, message: str) -> None:
    """Reading the image fails with one line that starts with the file's name."""
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "image.nii.gz", "no such file")


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_truncated_gzip_is_refused(image: Path, share: float) -> None:
    content = image.read_bytes()
    image.write_bytes(content[: int(share * len(content))])
    refused(image, "truncated file")


def test_a_whole_gzip_of_too_few_voxels_is_refused(image: Path) -> None:
    rewrite(image, lambda content: content[:-1])
    refused(image, "truncated file")


def test_a_damaged_gzip_is_refused(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[-6] ^= 1  # its check sum
    image.write_bytes(content)
    refused(image, "damaged file: got CRC check failed")


def test_bytes_after_the_voxels_are_refused(image: Path) -> None:
    rewrite(image, lambda content: content + b"0")
    refused(image, "wanted an end after 5 x 6 x 7 x 4 voxels, got more bytes")


def test_rubbish_after_the_gzip_stream_is_refused(image: Path) -> None:
    image.write_bytes(image.read_bytes() + b"rubbish")
    refused(image, "damaged file: got Not a gzipped file")


def test_a_file_twice_in_one_is_refused(image: Path) -> None:
    image.write_bytes(2 * image.read_bytes())
    refused(image, "wanted an end after 5 x 6 x 7 x 4 voxels, got more bytes")


def test_a_scan_packed_in_parts_or_padded_is_read(image: Path) -> None:
    whole, content = read_image(image).array, gzip.decompress(image.read_bytes())
    image.write_bytes(gzip.compress(content[:999]) + gzip.compress(content[999:]) + bytes(9))
    assert np.array_equal(read_image(image).array, whole)


def test_a_large_file_is_read_in_blocks(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_image(image).array
    monkeypatch.setattr(nifti, "_PACKED_AT_ONCE_BYTES", image.stat().st_size - 1)
    assert np.array_equal(read_image(image).array, whole)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_plain_file_of_another_length_is_refused(image: Path, extra: int) -> None:
    plain = image.with_suffix("")
    content = gzip.decompress(image.read_bytes())
    plain.write_bytes(content[:extra] if extra < 0 else content + b"0")
    refused(plain, "truncated file" if extra < 0 else "bytes: wanted 2032 as it says, got 2033")


def test_a_name_that_lies_about_gzip_is_refused(image: Path) -> None:
    plain = image.with_suffix("")
    plain.write_bytes(image.read_bytes())
    refused(plain, "content: wanted plain NIfTI, got gzip")
    image.write_bytes(gzip.decompress(image.read_bytes()))
    refused(image, "content: wanted gzip, got something else")
    image.write_bytes(b"")
    refused(image, "content: wanted gzip, got an empty file")


@pytest.mark.parametrize("name", ["image.img", "image.mgz", ".nii.gz", "image"])
def test_another_extension_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, "file name: wanted NAME.nii.gz or NAME.nii")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.nii").mkdir()
    refused(tmp_path / "image.nii", "can't be read: got Is a directory")


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 3), (5, 6, 7, 5), (5, 6, 7, 2, 2)])
def test_anything_but_three_axes_and_four_channels_is_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = save(tmp_path / "image.nii.gz", np.ones(shape, np.int16))
    got = " x ".join(map(str, shape))
    with pytest.raises(DataError, match=f"shape: wanted I x J x K x 4 channels, got {got}$"):
        read_image(path, channels=4)


def test_one_channel_needs_no_fourth_axis(label: Path) -> None:
    assert read_image(label, channels=1).array.shape == (5, 6, 7, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, value: float) -> None:
    values = np.ones((5, 6, 7, 4), np.float32)
    values[1, 2, 3, 2] = value
    path = save(tmp_path / "image.nii.gz", values)
    refused(path, "channel 2: wanted finite numbers, got 1 voxels of NaN or infinity")


def test_a_small_file_can_t_ask_for_gigabytes(image: Path) -> None:
    header = gzip.decompress(image.read_bytes())[:352]
    image.write_bytes(gzip.compress(header))
    poke(image, 42, "<4h", 1200, 1200, 1600, 4)
    refused(image, "size: wanted at most 8 GiB of voxels, got 1200 x 1200 x 1600 x 4 of int16, 17")
    poke(image, 42, "<4h", 900, 900, 600, 4)  # below the limit, yet no gzip is packed so well
    refused(image, "truncated file")


def test_the_limit_is_a_parameter(image: Path) -> None:
    with pytest.raises(DataError, match="size: wanted at most"):
        read_image(image, limit_bytes=1000)


@pytest.mark.parametrize(
    ("offset", "layout", "values", "message"),
    [
        (40, "<h", (2,), r"dimensions: wanted 3 or 4, each at least 1, got dim \[2, 5, 6\]"),
        (40, "<h", (-4,), "dimensions|header"),
        (42, "<hh", (0, -6), "dimensions"),
        (70, "<h", (32,), "data type: wanted whole or real numbers, got code 32"),
        (70, "<h", (999,), "data type: .*got code 999"),
        (0, "<i", (347,), "header|format"),
        (344, "<4s", (b"ni1\0",), "format: wanted NIfTI in one file"),
        (108, "<f", (12.0,), "vox_offset: wanted from 348, got 12"),
        (112, "<ff", (np.inf, 0), "scaling: wanted finite"),
        (123, "<B", (1,), r"units of length: wanted 2 \(mm\), got 1"),
        (252, "<hh", (0, 0), "orientation: wanted an sform or a qform, got none"),
        (280, "<I", (0x7F800001,), r"affine: wanted numbers within 1e[+]06 mm, got \[\[nan"),
        (280, "<f", (2e6,), r"affine: wanted numbers within 1e[+]06 mm, got \[\[2000000.0"),
        (280, "<8f", (1, 0, 0, 0, 1, 0, 0, 0), "affine: wanted three axes, not in a plane"),
        (280, "<4f", (0, 0, 0, 0), "affine: wanted three axes"),
        (252, "<2h3f", (1, 0, 2.0, 2.0, 2.0), "affine: got"),
    ],
)
def test_a_header_that_can_t_be_is_refused(
    image: Path, offset: int, layout: str, values: tuple[float, ...], message: str
) -> None:
    poke(image, offset, layout, *values)
    refused(image, message)


def test_labels_of_another_shape_are_refused(tmp_path: Path, image: Path) -> None:
    path = save(tmp_path / "label.nii.gz", np.ones((5, 6, 8), np.uint8), OBLIQUE)
    with pytest.raises(DataError, match=r"shape: wanted 5 x 6 x 7 as .*image"):
        read_labels(path, like=read_image(image))


def test_labels_on_another_grid_are_refused(tmp_path: Path, image: Path) -> None:
    scan = read_image(image)
    for codes in ((-1, 1, 1, 1), (1, 1, 1, 1)):
        moved = OBLIQUE @ np.diag(codes)
        moved[0, 3] += 0.02 if codes[0] == 1 else 0
        path = save(tmp_path / "label.nii.gz", np.ones((5, 6, 7), np.uint8), moved)
        with pytest.raises(DataError, match=r"affine: wanted that of .*mm away"):
            read_labels(path, like=scan)


def test_rounding_of_an_affine_is_forgiven(tmp_path: Path, image: Path, label: Path) -> None:
    moved = OBLIQUE.copy()
    moved[:3, 3] += 1e-4
    path = save(tmp_path / "moved.nii.gz", read_labels(label).array, moved)
    assert read_labels(path, like=read_image(image)).shape_vox == (5, 6, 7)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.uint8, 4), (np.int16, -1), (np.float32, 1.5), (np.int32, 300), (np.float64, -2)],
)
def test_label_values_outside_0_to_3_are_refused(tmp_path: Path, dtype: type, value: float) -> None:
    values = np.zeros((5, 6, 7), dtype)
    values[4, 5, 6] = value
    path = save(tmp_path / "label.nii.gz", values)
    with pytest.raises(DataError, match=f"label values: wanted among 0, 1, 2, 3.*got {value:g}$"):
        read_labels(path)


def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path) -> None:
    values = np.random.default_rng(5).integers(0, 4, (5, 6, 7)).astype(np.float32)
    labels = read_labels(save(tmp_path / "label.nii.gz", values)).array
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, values)


def test_labels_with_a_channel_axis_are_refused(image: Path) -> None:
    with pytest.raises(DataError, match=r"shape: wanted I x J x K, got 5 x 6 x 7 x 4"):
        read_labels(image)
