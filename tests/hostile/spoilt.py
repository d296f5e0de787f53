"""Real scans, spoilt: strategies that make NIfTI files which no scanner ever wrote."""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
from hypothesis import strategies as st

from tests.support.scans import DEMO

CROP = DEMO / "crops/BRATS_119_crop_image.nii.gz"
SHAPE = (9, 10, 8)
NAMES = ("a.nii", "a.nii.gz")
NUMBERS = (0, 1, -1, 2, 3, 4, 7, 8, 255, 256, 32767, -32768, 2**31 - 1, -(2**31), 2**62)
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-30, 1e30, 3.4e38, -3.4e38, np.nan, np.inf, -np.inf)
HEADER_FIELDS = (
    "sizeof_hdr", "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter",
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
    "srow_x", "srow_y", "srow_z", "magic", "intent_code", "slice_duration",
)  # fmt: skip


@dataclass(frozen=True)
class Spoilt:
    """A file's name and content.

    channels: of the image that it was made of.
    whole: the content of that image, if what was spoilt is protected by gzip's check sums: the
        file must be refused, or read as if nothing had happened.
    """

    name: str
    content: bytes
    channels: int
    whole: bytes | None = None

    def __repr__(self) -> str:
        return f"<{self.name}, {len(self.content)} bytes, crc {zlib.crc32(self.content):08x}>"


@cache
def plain(kind: type, order: str, dtype: str, channels: int) -> bytes:
    """A part of the real crop as an unpacked file of another kind."""
    shape = (*SHAPE, channels) if channels > 1 else SHAPE
    values = np.asarray(nib.load(CROP).dataobj)[20:29, 20:30, 4:12, :channels].reshape(shape)
    header = kind.header_class(endianness=order)  # type: ignore[attr-defined]
    header.set_data_dtype(np.dtype(order + dtype))
    image = kind(values.astype(order + dtype), nib.load(CROP).affine, header)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def _header_size(content: bytes) -> int:
    return 348 if 348 in {int.from_bytes(content[:4], o) for o in ("little", "big")} else 540  # type: ignore[arg-type]


def fields_of(content: bytes) -> np.ndarray[Any, Any]:
    """The header's fields, in the order of bytes that its size is written in."""
    size = _header_size(content)
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    order = "<" if int.from_bytes(content[:4], "little") == size else ">"
    return np.frombuffer(content[:size], kind.template_dtype.newbyteorder(order)).copy()[0]


@st.composite
def _spoil_field(draw: Any, content: bytes) -> bytes:
    """One or two fields get a value that is at, or beyond, the edge."""
    fields = fields_of(content)
    for name in draw(st.lists(st.sampled_from(HEADER_FIELDS), min_size=1, max_size=2)):
        field = fields[name]
        if field.dtype.kind == "S":
            fields[name] = draw(st.sampled_from([b"ni1", b"n+2", b"n+1", b"", b"\xff\xff\xff\xff"]))
            continue
        is_real = field.dtype.kind == "f"
        value = draw(st.sampled_from(REALS) if is_real else st.sampled_from(NUMBERS))
        if not is_real:
            limits = np.iinfo(field.dtype)
            value = max(limits.min, min(value, limits.max))
        if field.ndim:
            fields[name][draw(st.integers(0, field.shape[0] - 1))] = value
        else:
            fields[name] = value
    return fields.tobytes() + content[len(fields.tobytes()) :]


@st.composite
def _spoil_bytes(draw: Any, content: bytes) -> bytes:
    """Bits of the header are turned over."""
    spoilt = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        spoilt[draw(st.integers(0, min(555, len(content) - 1)))] ^= 1 << draw(st.integers(0, 7))
    return bytes(spoilt)


@st.composite
def _spoil_length(draw: Any, content: bytes) -> bytes:
    """Cut off, lengthened (a bomb: by megabytes of zeros), or a piece is missing or doubled."""
    at = draw(st.integers(0, len(content)))
    more = draw(st.integers(1, 2000))
    return draw(
        st.sampled_from(
            [
                content[:at],
                content[:at] + content[at + more :],
                content[:at] + content[at : at + more] + content[at:],
                content + draw(st.binary(min_size=1, max_size=20)),
                content + bytes(5_000_000),
                content[:400] + bytes(5_000_000),
            ]
        )
    )


@st.composite
def _spoil_stream(draw: Any, packed: bytes) -> bytes:
    """A gzip stream with turned bits, cut off, with a tail, or in several members."""
    spoilt = bytearray(packed)
    kind = draw(
        st.sampled_from(["bits", "start", "end", "cut", "tail", "zeros", "twice", "hole", "two"])
    )
    if kind in {"bits", "start", "end"}:
        span = {"bits": (0, len(spoilt)), "start": (0, 12), "end": (len(spoilt) - 8, len(spoilt))}
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(span[kind][0], span[kind][1] - 1))
            spoilt[at] ^= 1 << draw(st.integers(0, 7))
        return bytes(spoilt)
    at = draw(st.integers(1, len(packed) - 1))
    return {
        "cut": packed[:at],
        "tail": packed + draw(st.binary(min_size=1, max_size=40)),
        "zeros": packed + bytes(draw(st.integers(1, 40))),
        "twice": packed + packed,
        # another scan of the same size, packed by another program at another time
        "two": packed + gzip.compress(bytes(len(gzip.decompress(packed))), 9, mtime=at),
        "hole": packed[:at] + packed[at + draw(st.integers(1, 50)) :],
    }[kind]


@st.composite
def spoilt_files(draw: Any) -> Spoilt:
    """A file that was good before something happened to it."""
    kind = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    dtype = draw(st.sampled_from(["u1", "i2", "i4", "f4", "f8"]))
    channels = draw(st.sampled_from([1, 4]))
    content = plain(kind, draw(st.sampled_from("<>")), dtype, channels)
    ways: list[Callable[[bytes], Any]] = [_spoil_field, _spoil_bytes, _spoil_length]
    if draw(st.integers(0, 3)) == 0:
        packed = gzip.compress(content, 1, mtime=0)
        return Spoilt("a.nii.gz", draw(_spoil_stream(packed)), channels, whole=content)
    for way in draw(st.lists(st.sampled_from(ways), min_size=1, max_size=2)):
        content = draw(way(content)) if len(content) > 540 else content
    name = draw(st.sampled_from(NAMES))
    is_packed = (name == NAMES[1]) != (draw(st.integers(0, 19)) == 0)
    return Spoilt(name, gzip.compress(content, 1, mtime=0) if is_packed else content, channels)


def unpacked(content: bytes) -> bytes:
    """All members of a gzip file, or a plain file's own bytes, without `gzip` and nibabel."""
    parts = []
    while content[:2] == b"\x1f\x8b":
        # reserved flags mean nothing yet, and nobody but zlib minds them
        content = content[:3] + bytes([content[3] & 0x1F]) + content[4:]
        member = zlib.decompressobj(wbits=31)
        parts.append(member.decompress(content))
        assert member.eof
        content = member.unused_data.lstrip(b"\0")
    return b"".join(parts) or content


def as_it_says(content: bytes, channels: int) -> np.ndarray[Any, Any]:
    """The array that a file's bytes say, read as simply as can be."""
    raw = unpacked(content)
    fields = fields_of(raw)
    shape = [int(n) for n in fields["dim"][1 : 1 + int(fields["dim"][0])]]
    kinds = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
             1024: "i8", 1280: "u8"}  # fmt: skip
    order = fields.dtype["dim"].base.byteorder
    dtype = np.dtype(kinds[int(fields["datatype"])]).newbyteorder(order)
    offset = int(fields["vox_offset"])
    assert len(raw) == offset + int(np.prod(shape)) * dtype.itemsize
    array = np.frombuffer(raw, dtype, offset=offset)
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope and np.isfinite(slope) and (slope, inter) != (1, 0):
        array = array.astype(np.float64) * slope + inter
    return array.reshape((*shape[:3], channels), order="F")
