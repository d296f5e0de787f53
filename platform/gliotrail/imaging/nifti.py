"""Scans and masks as NIfTI files: read with care, written on the same grid as they came from."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gliotrail.errors import DataError
from gliotrail.files import replacing
from gliotrail.imaging.geometry import Affine, Vox3, spacing_mm
from gliotrail.imaging.header import (
    BLOCK_BYTES,
    LARGEST_BYTES,
    Header,
    by,
    check_channels,
    check_same_grid,
    is_packed,
    open_unpacked,
    parse,
    take,
    take_header,
    truncated,
)
from gliotrail.imaging.labels import CHANNELS, CLASSES, Labels, check_codes


@dataclass(frozen=True, eq=False)
class Scan:
    """A file's array, on the file's own grid and in its own axes order, and its header.

    array: (I, J, K, C) of an image, uint8 (I, J, K) of labels.
    """

    array: npt.NDArray[Any]
    header: Header

    @property
    def affine(self) -> Affine:
        """Voxel indices -> xyz_mm."""
        return self.header.affine

    @property
    def shape_vox(self) -> Vox3:
        """Voxels along the file's first three axes."""
        return self.header.shape_vox

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Length of a voxel along each of the file's axes."""
        return spacing_mm(self.affine)


def read_image(path: Path, channels: int = len(CHANNELS), limit_bytes: int = LARGEST_BYTES) -> Scan:
    """A scan (I, J, K, C) in the file's own data type, or float64 where the file scales its values.

    Args:
        path: a `.nii` or `.nii.gz`, only ever read.
        channels: how many are wanted along the fourth axis; with 1 the file has three axes.
        limit_bytes: the largest array to accept.

    Raises:
        DataError: as `read_header`; another number of axes or channels; a truncated or damaged
            file or one that goes on after its voxels; NaN or infinity.
    """
    scan = _read(path, limit_bytes, lambda header: check_channels(header, channels))
    array = scan.array.reshape(*scan.shape_vox, channels, order="F")
    for channel in range(channels):
        _check_finite(array[..., channel], f"voxel values of channel {channel}", path)
    return Scan(array, scan.header)


def read_labels(path: Path, like: Scan | None = None) -> Scan:
    """A label volume, uint8 (I, J, K) with the values 0 to 3.

    Args:
        path: a `.nii` or `.nii.gz`, only ever read.
        like: the image that the labels must lie on.

    Raises:
        DataError: as `read_image`; a label value outside 0..3; another grid than `like`.
    """

    def check(header: Header) -> None:
        check_channels(header, 1)
        if like is not None:
            check_same_grid(header, like.header)

    scan = _read(path, LARGEST_BYTES, check)
    _check_finite(scan.array, "label values", path)
    if scan.array.dtype.kind == "f" or scan.array.min() < 0 or scan.array.max() > len(CLASSES):
        check_codes(scan.array, where=path)
    return Scan(scan.array.astype(np.uint8, copy=False), scan.header)


def write_labels(path: Path, labels: Labels, like: Scan) -> None:
    """Write labels (I, J, K) on the grid of `like`, in its axes order, as uint8.

    qform, sform, their codes, pixdim and units are the same bytes as in `like`. The file appears
    at once or not at all, and equal masks are equal files.

    Raises:
        DataError: another shape than `like`, other values than 0..3, or another file name.
    """
    if labels.shape != like.shape_vox:
        raise DataError("shape", where=path, wanted=by(like.shape_vox), got=by(labels.shape))
    check_codes(labels, where=path)
    raw = like.header.raw
    fields = parse(raw, like.header.path).copy()
    changes = {
        "dim": [3, *labels.shape, 1, 1, 1, 1],
        "datatype": 2, "bitpix": 8, "vox_offset": len(raw) + 4,
        "scl_slope": 1, "scl_inter": 0, "cal_max": 0, "cal_min": 0,
        "intent_code": 0, "intent_name": b"", "aux_file": b"",
    }  # fmt: skip
    for field, value in changes.items():
        fields[field] = value
    content = fields.binaryblock + bytes(4) + labels.astype(np.uint8).tobytes(order="F")
    if is_packed(path):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with replacing(path) as partial:
        partial.write_bytes(content)


def _read(path: Path, limit_bytes: int, check: Callable[[Header], None]) -> Scan:
    """The whole array in the file's axes order, the first axis the fastest."""
    with open_unpacked(path) as stream:
        header = take_header(path, stream, limit_bytes)
        check(header)
        take(stream, header.offset_bytes - len(header.raw), path)
        array = np.empty(header.shape, header.dtype, order="F")
        room = array.reshape(-1, order="F").view(np.uint8).data
        at = 0
        while at < len(room):
            block = take(stream, min(BLOCK_BYTES, len(room) - at), path)
            if not block:
                raise truncated(path)
            room[at : at + len(block)] = block
            at += len(block)
        if take(stream, 1, path):
            wanted = f"an end after {by(header.shape)} voxels"
            raise DataError("content", where=path, wanted=wanted, got="more bytes")
    if not array.dtype.isnative:
        array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
    if header.scale is not None:
        array = array.astype(np.float64)
        array *= header.scale[0]
        array += header.scale[1]
    return Scan(array, header)


def _check_finite(array: npt.NDArray[Any], what: str, path: Path) -> None:
    # the least and the largest carry a NaN through and need no second array
    if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
        got = f"{int((~np.isfinite(array)).sum())} voxels of NaN or infinity"
        raise DataError(what, where=path, wanted="finite numbers", got=got)
