import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gliotrail.errors import DataError
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import Prepared, load_prepared
from gliotrail.report.data_pictures import draw_data
from tests.support.scans import edit_json, patch_section, rewrite, snapshot, split_section

SIZE = (16, 16, 8)


def add_case(raw: Path, name: str) -> None:
    entry = {kind: f"./{kind}sTr/{name}.nii.gz" for kind in ("image", "label")}
    for kind, path in entry.items():
        shutil.copyfile(raw / f"{kind}sTr/BRATS_009.nii.gz", raw / path)
    edit_json(raw / "dataset.json", lambda values: values["training"].append(entry))


def run(raw: Path, memory: Path | None) -> Prepared:
    """As DVC runs the stage: its outputs are removed first."""
    outs = [raw.parent / "out", raw.parent / "pictures"]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
    prepare(split_section(), raw, outs[0], processes=1, memory=memory and memory / "prepare")
    prepared = load_prepared(outs[0])
    draw_data(prepared, outs[1], memory and memory / "draw")
    return prepared


def inodes(folder: Path) -> dict[str, int]:
    """Which file on the disk each is: one that was made anew is another."""
    return {
        f"{path.parent.name}/{path.name}": path.stat().st_ino
        for at in ("out/cases", "pictures/cases")
        for path in (folder / at).rglob("*.*")
    }


def outputs(folder: Path) -> dict[str, object]:
    return {at: snapshot(folder / at) for at in ("out", "pictures")}


def test_a_new_and_a_changed_case_are_made_alone_and_all_is_as_from_scratch(
    raw_crops: Path, tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    run(raw_crops, memory)
    before = inodes(tmp_path)
    assert len(before) == 2 * 3 + 2 * 2
    add_case(raw_crops, "NEW")
    rewrite(raw_crops / "imagesTr/BRATS_119.nii.gz", lambda content: content[:-2] + b"\1\0")
    run(raw_crops, memory)
    after, made = inodes(tmp_path), outputs(tmp_path)
    assert {name for name in after if after[name] == before.get(name)} == {
        *(f"BRATS_009/{name}" for name in ("image.npy", "labels.npy", "case.json")),
        *("cases/BRATS_009.png", "cases/BRATS_009.gif"),
    }
    newest = [len(list((memory / stage).iterdir())) for stage in ("prepare", "draw")]
    assert newest == [3, 3]
    run(raw_crops, None)
    assert outputs(tmp_path) == made
    assert not before.items() & inodes(tmp_path).items()


def test_what_is_kept_and_was_changed_or_lost_is_made_anew(raw_crops: Path, tmp_path: Path) -> None:
    out, memory = tmp_path / "out", tmp_path / "memory"
    add_case(raw_crops, "NEW")
    prepare(split_section(), raw_crops, out, 1, memory)
    made = snapshot(out)
    changed, lost, broken = memory.iterdir()
    (changed / "labels.npy").write_bytes(b"x")
    (lost / "image.npy").unlink()
    (broken / "record.json").write_text("{")
    prepare(split_section(), raw_crops, out, 1, memory)
    assert snapshot(out) == made


def test_patches_of_a_case_that_is_as_it_was_are_not_drawn_again(
    prepared_crops: Prepared, tmp_path: Path
) -> None:
    split = replace(prepared_crops.split, training=("BRATS_009", "BRATS_119"))
    prepared = replace(prepared_crops, split=split)
    section, memory = patch_section(per_case=20), tmp_path / "memory"
    patch(section, prepared, SIZE, tmp_path / "first", memory)
    unlabelled = {
        name: replace(case, folder=tmp_path) for name, case in prepared_crops.cases.items()
    }
    without = replace(prepared, cases=unlabelled)
    patch(section, without, SIZE, tmp_path / "again", memory)
    patch(section, prepared, SIZE, tmp_path / "scratch", threads=2)
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "scratch")
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "scratch")
    with pytest.raises(DataError, match=r"labels.npy: prepared array"):
        patch(patch_section(per_case=20, seed=8), without, SIZE, tmp_path / "other", memory)
