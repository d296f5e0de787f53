"""Scans and masks as NIfTI files: read with care, written on the grid that they came from."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from gliotrail.dataset.brats import BRATS
from gliotrail.errors import DataError
from gliotrail.files import replacing
from gliotrail.imaging.geometry import Affine, Vox3, from_ras, spacing_mm, to_ras
from gliotrail.imaging.header import (
    BLOCK_BYTES,
    LARGEST_BYTES,
    Header,
    by,
    channels_of,
    check_channels,
    check_same_grid,
    is_packed,
    open_unpacked,
    parse,
    take,
    take_header,
    truncated,
)
from gliotrail.imaging.labels import Labels, to_codes, to_labels

_ALIGNED_BYTES: Final = 64
_PACKED_AT_ONCE_BYTES: Final = 2**28
"""A larger packed file is unpacked block by block, so that it isn't in memory beside its voxels."""


_SYSTEMS: Final = {*range(14), 255}  # gzip's codes of the system that made a file


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


def read_image(path: Path, channels: int | None = None, limit_bytes: int = LARGEST_BYTES) -> Scan:
    """A scan (I, J, K, C) in the file's own data type, or float64 where the file scales its values.

    Args:
        path: a `.nii` or `.nii.gz`, only ever read.
        channels: how many are wanted along the fourth axis (with 1 the file has three axes);
            as many as there are if None.
        limit_bytes: the largest array to accept.

    Raises:
        DataError: as `read_header`; another number of axes or channels; a truncated or damaged
            file or one that goes on after its voxels; NaN or infinity.
    """

    def check(header: Header) -> None:
        check_channels(header, channels or channels_of(header))

    scan = _read(path, limit_bytes, check)
    array = scan.array.reshape(*scan.shape_vox, -1, order="F")
    for channel in range(array.shape[3]):
        _check_finite(array[..., channel], f"voxel values of channel {channel}", path)
    return Scan(array, scan.header)


def read_labels(
    path: Path, like: Scan | None = None, codes: Mapping[int, int] = BRATS.labels_of_codes
) -> Scan:
    """A label volume, uint8 (I, J, K): 0 and the classes' places, whatever the file's codes.

    Args:
        path: a `.nii` or `.nii.gz`, only ever read.
        like: the image that the labels must lie on.
        codes: of the file -> labels.

    Raises:
        DataError: as `read_image`; a value that is no code; another grid than `like`.
    """

    def check(header: Header) -> None:
        check_channels(header, 1)
        if like is not None:
            check_same_grid(header, like.header)

    scan = _read(path, LARGEST_BYTES, check)
    _check_finite(scan.array, "label values", path)
    return Scan(to_labels(scan.array, codes, where=path), scan.header)


def read_channels(paths: Sequence[Path]) -> Scan:
    """One scan (I, J, K, C) of a file a channel, on the first file's grid and in its axes order.

    Raises:
        DataError: as `read_image`; files that differ in more than orientation.
    """
    scans = [read_image(path, channels=1) for path in paths]
    first = scans[0]
    shape = (*first.shape_vox, len(scans))
    together = np.empty(shape, np.result_type(*(scan.array for scan in scans)), order="F")
    for channel, scan in enumerate(scans):
        turned = in_ras(scan)
        check_same_grid(turned.header, in_ras(first).header)
        together[..., channel] = from_ras(turned.array[..., 0], first.affine)
    if len(scans) == 1:
        return replace(first, array=together)
    return Scan(together, replace(first.header, shape=shape))


def in_ras(scan: Scan) -> Scan:
    """The same in RAS+: the array is a view; the header has this grid, but `raw` the file's."""
    array, affine = to_ras(scan.array, scan.affine)
    return Scan(array, replace(scan.header, shape=array.shape, affine=affine))


def write_labels(
    path: Path, labels: Labels, like: Scan, codes: Mapping[int, int] = BRATS.codes_of_labels
) -> None:
    """Write labels (I, J, K) on the grid of `like`, in its axes order, as uint8.

    qform, sform, their codes, pixdim and units are the same bytes as in `like`. The file appears
    at once or not at all, and equal masks are equal files.

    Args:
        path: a `.nii` or `.nii.gz`.
        labels: 0 and the classes' places.
        like: the scan that they are of.
        codes: of labels -> what is written.

    Raises:
        DataError: another shape than `like`, a label without a code, or another file name.
    """
    _write_like(path, to_codes(labels, codes, where=path), like, datatype=2)


def write_probabilities(
    path: Path, probabilities_IJKC: npt.NDArray[np.float32], like: Scan
) -> None:
    """Write a probability a class and voxel (I, J, K, C) as float32; else as `write_labels`."""
    _write_like(path, probabilities_IJKC, like, datatype=16)


def write_image(path: Path, image: npt.NDArray[Any], affine: Affine) -> None:
    """Write an array (I, J, K) or (I, J, K, C) as a new file, in mm, in its own data type.

    The file appears at once or not at all, and equal images are equal files.

    Raises:
        DataError: another file name.
    """
    file = nib.Nifti1Image(image, affine)
    file.header.set_xyzt_units("mm")
    _save(path, file.to_bytes(), compresslevel=1)


def _write_like(path: Path, array: npt.NDArray[Any], like: Scan, datatype: int) -> None:
    """Write an array whose first three axes are those of `like`, with its geometry."""
    if array.shape[:3] != like.shape_vox:
        raise DataError("shape", where=path, wanted=by(like.shape_vox), got=by(array.shape))
    raw = like.header.raw
    fields = parse(raw, like.header.path).copy()
    changes = {
        "dim": [array.ndim, *array.shape, *[1] * (7 - array.ndim)],
        "datatype": datatype, "bitpix": 8 * array.dtype.itemsize, "vox_offset": len(raw) + 4,
        "scl_slope": 1, "scl_inter": 0, "cal_max": 0, "cal_min": 0,
        "intent_code": 0, "intent_name": b"", "aux_file": b"",
    }  # fmt: skip
    for field, value in changes.items():
        fields[field] = value
    ordered = array.astype(array.dtype.newbyteorder(fields.endianness), copy=False)
    _save(path, fields.binaryblock + bytes(4) + ordered.tobytes(order="F"), compresslevel=6)


def _save(path: Path, content: bytes, compresslevel: int) -> None:
    if is_packed(path):
        content = gzip.compress(content, compresslevel, mtime=0)
    with replacing(path) as partial:
        partial.write_bytes(content)


def _read(path: Path, limit_bytes: int, check: Callable[[Header], None]) -> Scan:
    """The whole array in the file's axes order, the first axis the fastest."""
    with open_unpacked(path) as stream:
        header = take_header(path, stream, limit_bytes)
        check(header)
        array = _unpacked_at_once(header) if is_packed(path) else None
        if array is None:
            array = _streamed(header, stream)
    if not array.dtype.isnative:
        array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
    if header.scale is not None:
        array = array.astype(np.float64)
        array *= header.scale[0]
        array += header.scale[1]
    return Scan(array, header)


def _unpacked_at_once(header: Header) -> npt.NDArray[Any] | None:
    """The voxels of a packed file, by libdeflate into memory that is taken once.

    None unless the file is one gzip member exactly as long as its header says: `_streamed` reads
    any other, and says what is wrong with it.
    """
    from imagecodecs import GzipError, gzip_decode  # not at import: it takes milliseconds

    whole_bytes = header.offset_bytes + header.array_bytes
    with header.path.open("rb") as file:
        packed = file.read(_PACKED_AT_ONCE_BYTES)
        if file.read(1):
            return None
    # gzip (RFC 1952) ends with the length of its last member
    if int.from_bytes(packed[-4:], "little") != whole_bytes or _may_have_members(packed):
        return None
    before = -header.offset_bytes % _ALIGNED_BYTES
    room = np.empty(before + whole_bytes, np.uint8)
    try:
        if len(gzip_decode(packed, out=room[before:].data)) != whole_bytes:
            return None
    except GzipError:
        return None
    voxels = room[before + header.offset_bytes :].view(header.dtype)
    return voxels.reshape(header.shape, order="F")


def _may_have_members(packed: bytes) -> bool:
    """Whether something in a gzip file looks like the start of a second member (RFC 1952)."""
    at = packed.find(b"\x1f\x8b\x08", 10)
    while at >= 0:
        start = packed[at : at + 10]
        if len(start) == 10 and start[3] < 32 and start[8] in {0, 2, 4} and start[9] in _SYSTEMS:
            return True
        at = packed.find(b"\x1f\x8b\x08", at + 1)
    return False


def _streamed(header: Header, stream: BinaryIO) -> npt.NDArray[Any]:
    """The voxels of any file, block by block, from a stream that has just given the header.

    Raises:
        DataError: it is truncated or damaged, or goes on after the voxels.
    """
    path = header.path
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
    return array


def _check_finite(array: npt.NDArray[Any], what: str, path: Path) -> None:
    # the least and the largest carry a NaN through and need no second array
    if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
        got = f"{int((~np.isfinite(array)).sum())} voxels of NaN or infinity"
        raise DataError(what, where=path, wanted="finite numbers", got=got)
