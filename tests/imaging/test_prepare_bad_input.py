import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gliotrail.errors import GliotrailError
from gliotrail.imaging.header import read_header
from gliotrail.imaging.prepare import prepare
from tests.support.scans import ROOT, lay_out_crops, rewrite, snapshot, split_section, with_values

IMAGE, LABEL = "imagesTr/BRATS_009.nii.gz", "labelsTr/BRATS_009.nii.gz"


def put(array: np.ndarray, value: float) -> np.ndarray:
    array[..., 3] = value
    return array


THIN = np.diag([1.0, 1, 5, 1])
BAD = {
    "a missing file": (lambda raw: (raw / IMAGE).unlink(), f"{IMAGE}: no such file"),
    "a truncated file": (
        lambda raw: (raw / IMAGE).write_bytes((raw / IMAGE).read_bytes()[:90_000]),
        f"{IMAGE}: truncated file",
    ),
    "a label without an image": (
        lambda raw: shutil.copy(raw / LABEL, raw / "labelsTr/OTHER.nii.gz"),
        "labelsTr/OTHER.nii.gz: a label without its image",
    ),
    "another shape": (
        lambda raw: with_values(raw / LABEL, lambda labels: labels[:-1]),
        f"{LABEL}: shape: wanted 64 x 64 x 32 as .*{IMAGE}, got 63 x 64 x 32",
    ),
    "another affine": (
        lambda raw: with_values(raw / LABEL, lambda labels: labels, np.eye(4)),
        f"{LABEL}: affine: wanted that of .*{IMAGE}, got voxels up to 123 mm away",
    ),
    "a label value": (
        lambda raw: with_values(raw / LABEL, lambda labels: put(labels, 4)),
        f"{LABEL}: label values: wanted among 0, 1, 2, 3, got 4",
    ),
    "NaN": (
        lambda raw: with_values(raw / IMAGE, lambda image: put(image, np.nan)),
        f"{IMAGE}: voxel values of channel 3: wanted finite numbers, got 131072 voxels",
    ),
    "infinity": (
        lambda raw: with_values(raw / IMAGE, lambda image: put(image, np.inf)),
        f"{IMAGE}: voxel values of channel 3: wanted finite numbers",
    ),
    "three axes": (
        lambda raw: with_values(raw / IMAGE, lambda image: image[..., 0]),
        f"{IMAGE}: shape: wanted I x J x K x 4 channels, got 64 x 64 x 32$",
    ),
    "other voxels than the rest": (
        lambda raw: (
            with_values(raw / "imagesTr/BRATS_119.nii.gz", lambda image: image, THIN)
            or with_values(raw / "labelsTr/BRATS_119.nii.gz", lambda labels: labels, THIN)
        ),
        r"BRATS_119.nii.gz: spacing in RAS.: wanted that of the other cases, 1 x 1 x 1 mm, "
        "got 1 x 1 x 5 mm; set prepare.spacing",
    ),
    "zeros": (
        lambda raw: (
            with_values(raw / IMAGE, np.zeros_like),
            with_values(raw / LABEL, np.zeros_like),
        ),
        f"{IMAGE}: voxel values: wanted a body, got zeros alone",
    ),
}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An output that must outlive a failure."""
    out = tmp_path / "prepare"
    out.mkdir()
    (out / "fingerprint.json").write_text("work")
    return out


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_line_and_earlier_output_stays(
    raw_crops: Path, earlier: Path, what: str
) -> None:
    spoil, message = BAD[what]
    spoil(raw_crops)
    with pytest.raises(GliotrailError, match=message) as caught:
        prepare(split_section(), raw_crops, earlier, processes=1)
    assert "\n" not in str(caught.value)
    assert list(snapshot(earlier)) == ["fingerprint.json"]
    assert sorted(path.name for path in earlier.parent.iterdir()) == ["prepare", "raw"]


def test_mistakes_in_headers_and_split_are_told_before_any_voxel_is_read(raw_crops: Path) -> None:
    for name in (IMAGE, IMAGE.replace("009", "119")):
        offset = read_header(raw_crops / name).offset_bytes
        rewrite(raw_crops / name, lambda content, n=offset: content[: n + 9999])
        (raw_crops / name).write_bytes((raw_crops / name).read_bytes() + bytes(10_000))
    with pytest.raises(GliotrailError, match=r"prepare.split.test: labelled cases.*got 'NOBODY'"):
        prepare(split_section(test=["NOBODY"]), raw_crops, raw_crops.parent / "prepare")


def run_stage(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("what", ["another shape", "NaN"])
def test_the_stage_ends_with_one_line_and_no_traceback(tmp_path: Path, what: str) -> None:
    raw = lay_out_crops(tmp_path / "data/fetch")
    spoil, message = BAD[what]
    spoil(raw)
    (tmp_path / "data/prepare").mkdir()
    (tmp_path / "data/prepare/fingerprint.json").write_text("work")
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(
        text.replace("[0, 176, 0]", "[0, 48, 0]").replace("[240, 240, 50]", "[64, 64, 32]")
    )
    done = run_stage(tmp_path, "pipelines.prepare")
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: data/fetch/")
    assert message.split(":")[0] in lines[0]
    assert list(snapshot(tmp_path / "data/prepare")) == ["fingerprint.json"]


def test_a_mistyped_key_ends_the_stage_with_one_line(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("validation:", "validaton:", 1))
    done = run_stage(tmp_path, "pipelines.prepare")
    assert done.returncode == 1
    assert done.stderr == (
        "error: params.yaml: prepare.split.validaton: unknown key; did you mean validation? "
        "(1 more after this one)\n"
    )
