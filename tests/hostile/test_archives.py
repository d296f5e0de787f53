"""Archives and dataset.json from strangers."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from gliotrail import params
from gliotrail.errors import DataError
from gliotrail.imaging.download import unpack
from gliotrail.imaging.fetch import fetch
from gliotrail.imaging.formats.decathlon import read_dataset
from tests.hostile.conftest import SEED, Tally, fuzz
from tests.imaging.test_download import Member, archive, member
from tests.support.scans import DEMO, lay_out_crops, snapshot


def with_header(**values: str) -> Member:
    """A member whose extended header says something else."""
    info, content = member("x", b"1")
    info.pax_headers = values
    return info, content


def sized(kind: bytes, size: int) -> bytes:
    """A header alone, of a kind of member and with a size that can't be."""
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[156:157] = kind
    return bytes(with_right_sums(header))


def with_right_sums(content: bytearray) -> bytearray:
    """Otherwise a spoilt header is passed over as none."""
    for at in range(0, len(content) - 511, 512):
        header = content[at : at + 512]
        if header[257:262] == b"ustar":
            total = tarfile.calc_chksums(bytes(header))[0]  # type: ignore[attr-defined]
            content[at + 148 : at + 156] = b"%06o\0 " % total
    return content


def members(*some: Member) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for info, content in some:
                tar.addfile(info, io.BytesIO(content))
        return file.getvalue()


SIZES = (-1, -512, -1024, -100_000, 2**62)
BAD = {
    "a name beyond the disk's": members(member("a" * 5000, b"1")),
    "a path beyond the disk's": members(member("/".join(["a" * 90] * 50), b"1")),
    "folders without end": members(member("d/" * 400 + "a", b"1")),
    "NUL in a name": members(with_header(path="a\0b")),
    "another direction of letters": members(with_header(path="a\u202eb")),
    "two spellings of one letter": members(with_header(path="\u00e9")),
    "a terminal's orders": members(with_header(path="\x1b[2J")),
    "Windows' separator": members(member("..\\evil", b"1")),
    "out of the folder, said twice": members(with_header(path="../../evil")),
    "no number": members(with_header(**{"GNU.sparse.map": "0,1,a"})),
    "holes": members(with_header(**{"GNU.sparse.size": "9999999999"})),
    "half a table": members(with_header(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
    "a size that lies": members(with_header(size="99999999999")),
    "a file as a folder": members(member("a", b"1"), member("a/b", b"1")),
    "a folder as a file": members(member("a", b"1"), member("a", type=tarfile.DIRTYPE)),
    **{f"{kind!r} of {size}": sized(kind, size) for kind in (b"0", b"L", b"x") for size in SIZES},
}


@pytest.mark.parametrize("what", BAD)
def test_an_archive_that_can_t_be_is_refused(what: str, tmp_path: Path, tally: Tally) -> None:
    (tmp_path / "a.tar").write_bytes(BAD[what] + bytes(1024))
    told = tally.refusal(unpack, tmp_path / "a.tar", tmp_path / "deep/out")
    assert told is not None and told.startswith(str(tmp_path / "a.tar"))
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "deep")]
    assert outside == [tmp_path / "a.tar"]


def test_an_archive_of_too_many_entries_is_refused(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliotrail.imaging.download._MOST_MEMBERS", 50)
    many = archive(tmp_path / "a.tar", *(member(f"d/{n}") for n in range(51)))
    assert "members: wanted at most 50, got more" in str(
        tally.refusal(unpack, many, tmp_path / "out")
    )


GOOD = members(
    member("Task", type=tarfile.DIRTYPE),
    member("Task/a", b"x" * 700),
    with_header(path="Task/" + "b" * 120),
    member("Task/dataset.json", b"{}" * 300),
)
SPOILT_TARS = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 1), st.sampled_from(b"\0 -/.059A\x80\xff")),
    min_size=1, max_size=4,
)  # fmt: skip


def attack(spots: list[tuple[int, int]], place: Path, tally: Tally) -> None:
    content = bytearray(GOOD)
    for at, byte in spots:
        content[at] = byte
    (place / "a.tar").write_bytes(with_right_sums(content))
    out = place / f"archives/{tally.inputs}/out"
    tally.refusal(unpack, place / "a.tar", out)
    tally.check([path.name for path in out.parent.iterdir()] in ([], ["out"]))
    tally.check(not any(path.is_symlink() for path in out.rglob("*")))


@fuzz(40, spots=SPOILT_TARS)
def test_a_spoilt_archive_writes_nothing_outside(
    spots: list[tuple[int, int]], place: Path, tally: Tally
) -> None:
    attack(spots, place, tally)


@pytest.mark.long
@fuzz(2000, use=SEED, spots=SPOILT_TARS)
def test_thousands_of_spoilt_archives_do_not(
    spots: list[tuple[int, int]], place: Path, tally: Tally
) -> None:
    attack(spots, place, tally)


# dataset.json


IMAGE = "./imagesTr/BRATS_009.nii.gz"
STRANGE = [
    None, True, 0, -1, 1e308, "", ".", "..", "/", "a\0b", "\ud800", "\u202ea.nii.gz", "x" * 5000,
    "a/" * 3000 + "a.nii.gz", "\x1b[2J", [], {}, [[]], {"0": []}, {"image": None}, {"image": "."},
    "../raw/imagesTr/BRATS_009.nii.gz", "./imagesTr/brats_009.nii.gz", "./imagesTr",
]  # fmt: skip
PLACES = [
    ("modality",), ("modality", "0"), ("labels",), ("labels", "1"), ("training",),
    ("training", 0), ("training", 0, "image"), ("training", 0, "label"), ("test",), ("test", 0),
]  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops whose description is spoilt by every example."""
    return lay_out_crops(tmp_path_factory.mktemp("dataset") / "raw")


@fuzz(60, where=st.sampled_from(PLACES), value=st.sampled_from(STRANGE))
def test_a_spoilt_description_is_refused_or_lists_files_of_its_folder(
    where: tuple[Any, ...], value: object, raw: Path, tally: Tally
) -> None:
    values = json.loads((DEMO / "dataset.json").read_text()) | {"test": [IMAGE]}
    values["training"] = values["training"][1:]
    part = values
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    (raw / "dataset.json").write_text(json.dumps(values))
    if tally.refusal(read_dataset, raw) is None:
        files = read_dataset(raw).files
        tally.check(all(path.is_file() and path.is_relative_to(raw) for path in files))


def test_a_key_that_is_there_twice_is_refused(raw: Path) -> None:
    text = (DEMO / "dataset.json").read_text().strip()
    (raw / "dataset.json").write_text(text[:-1] + ', "training": []}')
    with pytest.raises(DataError, match="not JSON: got a key that is there twice"):
        read_dataset(raw)


def test_what_a_link_leads_to_is_copied_only_if_it_is_a_scan(
    raw_crops: Path, tmp_path: Path
) -> None:
    fetch(params.Fetch(source=str(raw_crops)), tmp_path / "fetch")
    before = snapshot(tmp_path / "fetch")
    (tmp_path / "secret").write_text("not for others")
    (raw_crops / IMAGE).unlink()
    (raw_crops / IMAGE).symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="content: wanted gzip, got something else"):
        fetch(params.Fetch(source=str(raw_crops)), tmp_path / "fetch")
    assert snapshot(tmp_path / "fetch") == before
