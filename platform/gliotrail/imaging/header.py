"""A NIfTI file's header, checked before anything as large as it says is allocated.

One file (`.nii` or `.nii.gz`), NIfTI-1 or NIfTI-2, either byte order. Format: the NIfTI-1 and
NIfTI-2 data format, nifti.nimh.nih.gov.
"""

import gzip
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from gliotrail.errors import DataError
from gliotrail.imaging.geometry import Affine, Vox3, spacing_mm, vox3

LARGEST_BYTES = 8 * 2**30
"""A file that says its voxels take more than this (8 GiB) is refused."""
BLOCK_BYTES = 16 * 2**20

_DEFLATE_LIMIT = 1032  # zlib's largest compression ratio (zlib technical details)
_FARTHEST_MM = 1e6  # a kilometre: no scanner is as large
_SMALLEST_TRIPLE_PRODUCT = 1e-3  # of the three axes as unit vectors: below, they lie in a plane
_MILLIMETRES_OR_UNKNOWN = (0, 2)
_FORM_CODES = range(6)  # of qform and sform; others have no meaning
_QUATERNION_ROUNDING = 1e-5  # how far b, c, d's squares may exceed 1: each is a float32
_FORMS_APART_VOX = 0.1


@dataclass(frozen=True, eq=False)
class Header:
    """A checked header: what is in a file and where.

    shape: of the whole array, without trailing ones after the third axis.
    scale: slope and intercept, where the file's numbers are not yet the values.
    affine: voxel indices -> xyz_mm (the sform if it is set, else the qform, as in nibabel).
    raw: the header's own 348 (NIfTI-1) or 540 (NIfTI-2) bytes.
    odd: what is unusual in it though it can be read, each in words.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset_bytes: int
    scale: tuple[float, float] | None
    affine: Affine
    raw: bytes
    odd: tuple[str, ...] = ()

    @property
    def shape_vox(self) -> Vox3:
        """Voxels along the file's first three axes."""
        return vox3(self.shape[:3])

    @property
    def array_bytes(self) -> int:
        """Bytes of the voxels in the file, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def memory_bytes(self) -> int:
        """Bytes of the voxels as they are read: scaled ones become float64."""
        return math.prod(self.shape) * (8 if self.scale else self.dtype.itemsize)


def read_header(path: Path, limit_bytes: int = LARGEST_BYTES) -> Header:
    """Read and check the header alone.

    Raises:
        DataError: no such file, another format, dimensions, data type, units or an affine that
            are impossible, or voxels that take more than `limit_bytes` or than the file can hold.
    """
    with open_unpacked(path) as stream:
        return take_header(path, stream, limit_bytes)


def channels_of(header: Header) -> int:
    """How many images there are along the fourth axis; 1 where there is none."""
    return header.shape[3] if len(header.shape) > 3 else 1


def check_channels(header: Header, channels: int) -> None:
    """Refuse a file that is no image of so many channels; one channel needs no fourth axis.

    Raises:
        DataError: naming the file and its shape.
    """
    if header.shape[3:] != ((channels,) if channels > 1 else ()):
        wanted = f"I x J x K x {channels} channels" if channels > 1 else "I x J x K"
        raise DataError("shape", where=header.path, wanted=wanted, got=by(header.shape))


def check_same_grid(header: Header, like: Header) -> None:
    """Refuse two files whose voxels don't lie on each other (within 1 % of a voxel).

    Raises:
        DataError: naming both files.
    """
    if header.shape_vox != like.shape_vox:
        wanted = f"{by(like.shape_vox)} as {like.path}"
        raise DataError("shape", where=header.path, wanted=wanted, got=by(header.shape_vox))
    apart_mm = float(np.abs((header.affine - like.affine)[:3] @ _corners(like.shape_vox)).max())
    if apart_mm > 0.01 * min(spacing_mm(like.affine)):
        got = f"voxels up to {apart_mm:.3g} mm away"
        raise DataError("affine", where=header.path, wanted=f"that of {like.path}", got=got)


def is_packed(path: Path) -> bool:
    """Whether the name says gzip.

    Raises:
        DataError: a name that is not NAME.nii.gz or NAME.nii.
    """
    for suffix in (".nii.gz", ".nii"):
        if path.name.endswith(suffix) and path.name != suffix:
            return suffix == ".nii.gz"
    raise DataError("file name", where=path, wanted="NAME.nii.gz or NAME.nii")


def open_unpacked(path: Path) -> BinaryIO:
    """A stream of the unpacked bytes, once the content was seen to be what the name says.

    Raises:
        DataError: no such file, or packed where its name says it isn't, or the reverse.
    """
    packed = is_packed(path)
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():
            # reading a pipe, for example, would wait for ever
            raise DataError("can't be read", where=path, wanted="a file", got="something else")
        with path.open("rb") as stream:
            start = stream.read(2)
    except FileNotFoundError:
        raise DataError("no such file", where=path) from None
    except OSError as error:
        raise DataError("can't be read", where=path, got=error.strerror) from None
    if (start == b"\x1f\x8b") != packed:
        wanted = "gzip" if packed else "plain NIfTI"
        got = "gzip" if not packed else "something else" if start else "an empty file"
        raise DataError("content", where=path, wanted=wanted, got=got)
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


def take(stream: BinaryIO, n_bytes: int, path: Path) -> bytes:
    """The next `n_bytes` of a stream, fewer at its end.

    Raises:
        DataError: the gzip stream is truncated or damaged.
    """
    try:
        return stream.read(n_bytes)
    except EOFError:
        raise truncated(path) from None
    except (zlib.error, OSError) as error:
        raise DataError("damaged file", where=path, got=str(error)) from None


def truncated(path: Path) -> DataError:
    """The error for a file that ends too early."""
    return DataError("truncated file", where=path, do="copy or download it again")


def parse(raw: bytes, path: Path) -> Any:
    """nibabel's view of the raw header's fields, in the file's byte order.

    Raises:
        DataError: this is no header.
    """
    kind: Any = nib.Nifti1Header if len(raw) == 348 else nib.Nifti2Header
    try:
        return kind(raw, check=False)
    except HeaderDataError as error:
        raise DataError("header", where=path, got=str(error)) from None


def by(shape: Sequence[int]) -> str:
    """(240, 240, 50) -> `240 x 240 x 50`."""
    return " x ".join(str(n) for n in shape)


def take_header(path: Path, stream: BinaryIO, limit_bytes: int) -> Header:
    """The header at the start of an unpacked stream, checked. Raises as `read_header`."""
    raw = take(stream, 348, path)
    if 540 in {int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")}:
        raw += take(stream, 540 - 348, path)
    if len(raw) not in {348, 540}:
        raise truncated(path)
    fields = parse(raw, path)
    magic = raw[344:348] if len(raw) == 348 else raw[4:12]
    # the end of the longer one shows whether line ends were converted on the way
    if magic not in {b"n+1\0", b"n+2\0\r\n\x1a\n"} or int(fields["sizeof_hdr"]) != len(raw):
        raise DataError("format", where=path, wanted="NIfTI in one file", got=f"magic {magic!r}")
    shape = _shape(fields, path)
    affine, odd = _affine(fields, path, shape)
    header = Header(
        path=path,
        shape=shape,
        dtype=_dtype(fields, path),
        offset_bytes=_offset_bytes(fields, path, len(raw)),
        scale=_scale(fields, path),
        affine=affine,
        raw=raw,
        odd=odd,
    )
    if header.memory_bytes > limit_bytes:
        wanted = f"at most {limit_bytes / 2**30:g} GiB of voxels"
        scaled = " with a scale" if header.scale else ""
        got = f"{by(header.shape)} of {header.dtype.name}{scaled}"
        got += f", {header.memory_bytes / 2**30:.3g} GiB"
        raise DataError("size", where=path, wanted=wanted, got=got)
    _check_room(header)
    return header


def _check_room(header: Header) -> None:
    """Refuse a file that is too small to hold the voxels its header describes."""
    on_disk, wanted = header.path.stat().st_size, header.offset_bytes + header.array_bytes
    if is_packed(header.path):
        if wanted > on_disk * _DEFLATE_LIMIT:
            raise truncated(header.path)
    elif wanted > on_disk:
        raise truncated(header.path)
    elif wanted < on_disk:
        raise DataError("bytes", where=header.path, wanted=f"{wanted} as it says", got=on_disk)


def _shape(fields: Any, path: Path) -> tuple[int, ...]:
    n_axes = int(fields["dim"][0])
    dims = [int(n) for n in fields["dim"][1 : max(n_axes, 0) + 1]]
    if not 3 <= n_axes <= 7 or min(dims) < 1:
        got = f"dim {[n_axes, *dims]}"
        raise DataError("dimensions", where=path, wanted="3 or 4, each at least 1", got=got)
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    return tuple(dims)


def _dtype(fields: Any, path: Path) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(fields.get_data_dtype())
    except (HeaderDataError, KeyError):
        dtype = np.dtype(object)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        got = f"code {fields['datatype']}"
        raise DataError("data type", where=path, wanted="whole or real numbers", got=got)
    return dtype


def _offset_bytes(fields: Any, path: Path, raw_bytes: int) -> int:
    offset = float(fields["vox_offset"])
    if not (raw_bytes <= offset <= BLOCK_BYTES and offset.is_integer()):
        raise DataError("vox_offset", where=path, wanted=f"from {raw_bytes}", got=f"{offset:g}")
    return int(offset)


def _scale(fields: Any, path: Path) -> tuple[float, float] | None:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):  # the format's way to say that there is none
        return None
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise DataError("scaling", where=path, wanted="finite", got=f"{slope:g}, {inter:g}")
    return None if (slope, inter) == (1, 0) else (slope, inter)


def _affine(fields: Any, path: Path, shape: tuple[int, ...]) -> tuple[Affine, tuple[str, ...]]:
    """The affine, and what is odd about it."""
    for code in ("sform_code", "qform_code"):
        if int(fields[code]) not in _FORM_CODES:
            wanted = f"0 to {_FORM_CODES[-1]}"
            raise DataError(code, where=path, wanted=wanted, got=int(fields[code]))
    if int(fields["sform_code"]) == 0 and int(fields["qform_code"]) == 0:
        do = "left and right can't be told apart; set one"
        raise DataError("orientation", where=path, wanted="an sform or a qform", got="none", do=do)
    units = int(fields["xyzt_units"]) & 7
    if units not in _MILLIMETRES_OR_UNKNOWN:
        raise DataError("units of length", where=path, wanted="2 (mm)", got=units)
    fields, odd = fields.copy(), []
    fields.quaternion_threshold = -_QUATERNION_ROUNDING
    if float(fields["pixdim"][0]) == 0 and int(fields["qform_code"]):
        fields["pixdim"][0] = 1  # as the format has it
        odd.append("pixdim[0] is 0, which means 1")
    try:
        with np.errstate(all="ignore"):  # the result is checked below
            affine = np.asarray(fields.get_best_affine(), np.float64)
            if int(fields["sform_code"]) and int(fields["qform_code"]):
                apart_vox = _apart_vox(affine, fields, shape)
                if apart_vox > _FORMS_APART_VOX:
                    odd.append("sform and qform disagree; the sform is used, both are kept")
    except (HeaderDataError, ValueError) as error:
        raise DataError("affine", where=path, got=str(error)) from None
    if not (np.abs(affine) <= _FARTHEST_MM).all():  # nor NaN
        wanted = f"numbers within {_FARTHEST_MM:g} mm"
        raise DataError("affine", where=path, wanted=wanted, got=str(affine[:3].tolist()))
    spacing = np.array(spacing_mm(affine))
    if not spacing.all() or (
        abs(np.linalg.det(affine[:3, :3] / spacing)) < _SMALLEST_TRIPLE_PRODUCT
    ):
        got = str(affine[:3, :3].round(4).tolist())
        raise DataError("affine", where=path, wanted="three axes, not in a plane", got=got)
    return affine, tuple(odd)


def _apart_vox(affine: Affine, fields: Any, shape: tuple[int, ...]) -> float:
    """How far apart qform and affine put a corner; 0 where there is no valid qform."""
    try:
        other = np.asarray(fields.get_qform(), np.float64)
    except (HeaderDataError, ValueError):
        return 0.0  # the qform is not used
    apart_mm = np.abs((other - affine)[:3] @ _corners(shape)).max()
    return float(apart_mm / max(min(spacing_mm(affine)), 1e-6))


def _corners(shape: Sequence[int]) -> npt.NDArray[np.int64]:
    """The eight corner voxels' indices, with a 1 below each (4, 8)."""
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], [1])).reshape(4, -1)


def odd_in(headers: Iterable[Header]) -> list[str]:
    """A line for each kind of oddity: the first file, how many more there are, what is odd."""
    found: dict[str, list[Path]] = {}
    for header in headers:
        for what in header.odd:
            found.setdefault(what, []).append(header.path)
    return [
        f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {what}"
        for what, paths in found.items()
    ]
