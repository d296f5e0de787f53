"""NIfTI files that no scanner ever wrote: refused in one line, or read as they say."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gliotrail.dataset.brats import BRATS
from gliotrail.errors import DataError
from gliotrail.imaging.nifti import in_ras, read_image, read_labels
from gliotrail.imaging.prepared import case_of_array
from tests.hostile.conftest import SEED, Tally, fuzz
from tests.hostile.spoilt import Spoilt, as_it_says, fields_of, plain, spoilt_files, unpacked


def attack(spoilt: Spoilt, place: Path, tally: Tally) -> None:
    path = place / spoilt.name
    path.write_bytes(spoilt.content)
    if tally.refusal(read_image, path, spoilt.channels) is None:
        scan = read_image(path, spoilt.channels)
        tally.check(np.array_equal(scan.array, as_it_says(spoilt.content, spoilt.channels)))
        kind = nib.Nifti1Image if len(scan.header.raw) == 348 else nib.Nifti2Image
        image = kind.from_bytes(unpacked(spoilt.content))
        tally.check(np.array_equal(scan.affine, image.affine))
        if spoilt.whole is not None:
            before = as_it_says(spoilt.whole, spoilt.channels)
            tally.check(np.array_equal(scan.array, before))
        if spoilt.channels == 4:
            image_CIJK = np.moveaxis(in_ras(scan).array, 3, 0)
            tally.refusal(case_of_array, image_CIJK, np.eye(4), "a case", BRATS.channels)
    elif spoilt.channels == 1:
        assert tally.refusal(read_labels, path) is not None
    assert path.read_bytes() == spoilt.content


@fuzz(40, spoilt=spoilt_files())
def test_a_spoilt_scan_is_refused_in_one_line_or_read_as_it_says(
    spoilt: Spoilt, place: Path, tally: Tally
) -> None:
    attack(spoilt, place, tally)


@pytest.mark.long
@pytest.mark.timeout(900)
@fuzz(6000, use=SEED, spoilt=spoilt_files())
def test_thousands_of_spoilt_scans_are(spoilt: Spoilt, place: Path, tally: Tally) -> None:
    attack(spoilt, place, tally)


# what is no file, and what is more than it seems


def with_field(name: str, value: object) -> bytes:
    content = plain(nib.Nifti1Image, "<", "i2", 4)
    fields = fields_of(content)
    fields[name] = value
    return fields.tobytes() + content[348:]


def broken_in_two(path: Path) -> None:
    content = plain(nib.Nifti1Image, "<", "i2", 4)
    path.with_suffix(".img").write_bytes(content[352:])
    path.write_bytes(content[:344] + b"ni1\0")


NO_SCANS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "can't be read: wanted a file"),
    "zeros without end": (lambda path: path.symlink_to("/dev/zero"), "can't be read: wanted a fi"),
    "a link to itself": (lambda path: path.symlink_to(path), "can't be read: got Too many"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "another's secrets": (lambda path: path.symlink_to("/etc/passwd"), "header|format|truncated"),
    "a header and an image": (broken_in_two, "format: wanted NIfTI in one file, got magic b'ni1"),
    "lines converted": (
        lambda path: path.write_bytes(
            plain(nib.Nifti2Image, "<", "i2", 4).replace(b"\r\n\x1a\n", b"\n\n\x1a\n", 1)
        ),
        "format: wanted NIfTI in one file, got magic b'n[+]2",
    ),
    "an unknown code": (
        lambda path: path.write_bytes(with_field("sform_code", 8)),
        "sform_code: wanted 0 to 5, got 8",
    ),
    "a scale that is infinite": (
        lambda path: path.write_bytes(with_field("scl_slope", 3.4e38)), "finite|within float32"),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_SCANS)
def test_what_is_no_scan_is_told_at_once(what: str, tmp_path: Path, tally: Tally) -> None:
    make, message = NO_SCANS[what]
    path = tmp_path / "scan.nii"
    make(path)

    def read() -> None:
        scan = read_image(path)
        case_of_array(np.moveaxis(scan.array, 3, 0), np.eye(4), "a case", BRATS.channels)

    with pytest.raises(DataError, match=message):
        read()
    assert tally.refusal(read) is not None


def test_two_scans_in_one_file_are_none(tmp_path: Path, tally: Tally) -> None:
    content = plain(nib.Nifti1Image, "<", "i2", 4)
    other = gzip.compress(bytes(len(content)), 9, mtime=1)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content, 1, mtime=0) + other)
    told = tally.refusal(read_image, tmp_path / "a.nii.gz")
    assert "wanted an end after 9 x 10 x 8 x 4 voxels, got more bytes" in str(told)


def test_what_scaling_makes_of_a_scan_counts_for_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(with_field("scl_slope", 0.5))
    n_bytes = 9 * 10 * 8 * 4 * 8
    assert read_image(path, limit_bytes=n_bytes).array.nbytes == n_bytes
    with pytest.raises(DataError, match="of int16 with a scale, 2"):
        read_image(path, limit_bytes=n_bytes - 1)
