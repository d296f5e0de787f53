from pathlib import Path

import pytest

from gliotrail import params
from gliotrail.errors import DataError, ParamsError
from gliotrail.imaging.fetch import fetch
from tests.support.scans import DEMO, snapshot


def test_the_demo_is_laid_out_with_its_provenance_and_without_the_crops(tmp_path: Path) -> None:
    dataset = fetch(params.Fetch(source="demo"), tmp_path / "fetch", demo=DEMO)
    assert [case.name for case in dataset.cases] == ["BRATS_009", "BRATS_119"]
    expected = {name: h for name, h in snapshot(DEMO).items() if not name.startswith("crops")}
    assert snapshot(tmp_path / "fetch") == expected
    assert "PROVENANCE.md" in expected


def test_a_folder_is_copied_never_linked(raw_crops: Path, tmp_path: Path) -> None:
    image = raw_crops / "imagesTr/BRATS_009.nii.gz"
    image.rename(tmp_path / "elsewhere")
    image.symlink_to(tmp_path / "elsewhere")
    (raw_crops / "imagesTr/not listed").write_text("no")
    fetch(params.Fetch(source=str(raw_crops)), tmp_path / "fetch")
    (raw_crops / "imagesTr/not listed").unlink()
    assert snapshot(tmp_path / "fetch") == snapshot(raw_crops)
    for path in (tmp_path / "fetch").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.stat().st_nlink == 1


def test_fetching_again_replaces_what_was_there(raw_crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "fetch"
    out.mkdir()
    (out / "old").write_text("old")
    fetch(params.Fetch(source=str(raw_crops)), out)
    assert snapshot(out) == snapshot(raw_crops)


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"fetch.source: wanted demo, msd or a folder, got 'dmo'"):
        fetch(params.Fetch(source="dmo"), tmp_path / "fetch")


@pytest.mark.parametrize("inside", ["", "imagesTr"])
def test_the_output_is_no_source(raw_crops: Path, inside: str) -> None:
    with pytest.raises(ParamsError, match=r"fetch.source: wanted a folder other than"):
        fetch(params.Fetch(source=str(raw_crops / inside)), raw_crops)


def test_a_bad_folder_leaves_earlier_raw_data_alone(raw_crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "fetch"
    fetch(params.Fetch(source=str(raw_crops)), out)
    before = snapshot(out)
    (raw_crops / "imagesTr/BRATS_119.nii.gz").unlink()
    with pytest.raises(DataError, match=r"BRATS_119.nii.gz: no such file"):
        fetch(params.Fetch(source=str(raw_crops)), out)
    assert snapshot(out) == before
