import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail import params
from gliotrail.errors import DataError
from gliotrail.imaging.geometry import Box, Vox3, vox3
from gliotrail.imaging.patch import PatchIndex, _running_sums, patch, read_index
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import Prepared, PreparedCase, load_prepared, read_patch
from gliotrail.imaging.prepared import read_labels_patch as read_labels
from tests.support.scans import ROOT, patch_section, split_section, with_values


def all_labels(case: PreparedCase) -> np.ndarray:
    return read_labels(case, Box((0, 0, 0), case.ras_shape_vox))


def trained_on(prepared: Prepared, *names: str, kept_out: Box | None = None) -> Prepared:
    boxes = {names[0]: kept_out} if kept_out else {}
    return replace(prepared, split=replace(prepared.split, training=names, kept_out=boxes))


def valid_corners(
    case: PreparedCase, size: Vox3, background_below: float, kept_out: Box | None
) -> dict[Vox3, bool]:
    """Every allowed corner, one after another, and whether its centre is tumour."""
    labels, valid = all_labels(case), {}
    for corner in np.ndindex(*[n - s + 1 for n, s in zip(labels.shape, size, strict=True)]):
        box = Box.at(corner, size)
        share = float((labels[box.slices] == 0).mean())
        if share < background_below and not (kept_out and box.touches(kept_out)):
            centre = tuple(c + s // 2 for c, s in zip(corner, size, strict=True))
            valid[corner] = bool(labels[centre] > 0)
    return valid


def corners_of(index: PatchIndex) -> list[Vox3]:
    return [tuple(corner) for corner in index.corner_vox.tolist()]


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    size=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 99),
)
def test_running_sums_count_what_is_in_each_box(shape: Vox3, size: Vox3, seed: int) -> None:
    size = tuple(min(pair) for pair in zip(shape, size, strict=True))
    mask = np.random.default_rng(seed).random(shape) < 0.4
    sums = _running_sums(mask, size)
    assert sums.shape == tuple(n - s + 1 for n, s in zip(shape, size, strict=True))
    for corner in np.ndindex(sums.shape):
        assert sums[corner] == mask[Box.at(corner, size).slices].sum()


@pytest.mark.parametrize("background_below", [0.35, 0.5])
@pytest.mark.parametrize("kept_out", [None, Box((40, 30, -5), (70, 70, 8))])
def test_exactly_the_allowed_corners_are_drawn_from(
    prepared_crops: Prepared, tmp_path: Path, background_below: float, kept_out: Box | None
) -> None:
    size = (26, 30, 11)
    valid = valid_corners(prepared_crops.cases["BRATS_119"], size, background_below, kept_out)
    assert 0 < len(valid) < 39 * 35 * 6
    section = patch_section(per_case=10_000, background_below=background_below)
    prepared = trained_on(prepared_crops, "BRATS_119", kept_out=kept_out)
    index = patch(section, prepared, size, tmp_path)
    assert sorted(corners_of(index)) == sorted(valid)


def test_as_many_as_asked_for_and_the_share_with_a_tumour_centre(
    prepared_crops: Prepared, tmp_path: Path
) -> None:
    size = (16, 16, 8)
    prepared = trained_on(prepared_crops, "BRATS_009", "BRATS_119")
    for share in (0.0, 0.25, 1.0):
        section = patch_section(per_case=80, class_centred=share)
        index = patch(section, prepared, size, tmp_path)
        assert len(index) == 160
        assert len(set(zip(index.case_number.tolist(), corners_of(index), strict=True))) == 160
        assert index.class_centred.sum() == share * 160
        for row in range(160):
            case = prepared.cases[index.cases[index.case_number[row]]]
            labels = read_labels(case, Box.at(index.corner_vox[row], size))
            assert index.voxels[row].tolist() == np.bincount(labels.ravel(), minlength=4).tolist()
            assert index.voxels[row, 0] / 2048 < 0.95
            assert labels[8, 8, 4] > 0 or not index.class_centred[row]


def test_the_share_of_patches_without_a_class_shows_brain_and_no_tumour(
    prepared_crops: Prepared, tmp_path: Path
) -> None:
    size = (12, 12, 8)
    prepared = trained_on(prepared_crops, "BRATS_119", kept_out=Box((0, 0, 0), (20, 64, 16)))
    index = patch(patch_section(per_case=40, without_class=0.25), prepared, size, tmp_path)
    healthy = index.voxels[:, 0] == 12 * 12 * 8
    assert (len(index), healthy.sum()) == (40, 10)
    assert index.class_centred.sum() == 15
    case = prepared.cases["BRATS_119"]
    for corner in index.corner_vox[healthy]:
        box = Box.at(vox3(corner), size)
        assert not read_labels(case, box).any()
        assert read_patch(case, box, "none").any()
        assert corner[0] >= 20
    again = patch(patch_section(per_case=40, without_class=0.25), prepared, size, tmp_path / "b")
    assert np.array_equal(index.corner_vox, again.corner_vox)


def test_draws_are_uniform_over_the_allowed_corners(
    prepared_crops: Prepared, tmp_path: Path
) -> None:
    size = (60, 60, 14)
    prepared = trained_on(prepared_crops, "BRATS_119")
    count = len(valid_corners(prepared.cases["BRATS_119"], size, 0.95, None))
    drawn = np.zeros((5, 5, 3))
    for seed in range(60):
        section = patch_section(per_case=25, seed=seed, class_centred=0.0)
        index = patch(section, prepared, size, tmp_path)
        np.add.at(drawn, tuple(index.corner_vox.T), 1)
    # each of 75 corners is drawn 20 times on average, with a std of 3.7
    assert count == 75
    assert drawn.sum() == 1500
    assert drawn.min() > 20 - 4 * 3.7
    assert drawn.max() < 20 + 4 * 3.7


def test_another_size_or_case_changes_nothing(prepared_crops: Prepared, tmp_path: Path) -> None:
    section = patch_section(per_case=30)
    both = trained_on(prepared_crops, "BRATS_009", "BRATS_119")
    patch(section, both, (16, 16, 8), tmp_path / "a")
    patch(section, both, (16, 16, 16), tmp_path / "b")
    patch(section, both, (16, 16, 8), tmp_path / "b")
    file = "16x16x8/index.parquet"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    alone = patch(section, trained_on(prepared_crops, "BRATS_119"), (16, 16, 8), tmp_path / "c")
    index = read_index(tmp_path / "a" / file)
    assert np.array_equal(alone.corner_vox, index.corner_vox[index.case_number == 1])
    other_seed = patch(patch_section(per_case=30, seed=8), both, (16, 16, 8), tmp_path / "d")
    assert not np.array_equal(other_seed.corner_vox, index.corner_vox)


def test_an_index_is_read_as_it_was_written_and_is_small(
    prepared_crops: Prepared, tmp_path: Path
) -> None:
    written = patch(patch_section(), prepared_crops, (32, 24, 16), tmp_path)
    path = tmp_path / "32x24x16/index.parquet"
    index = read_index(path)
    assert path.stat().st_size < 10_000
    assert index.size_vox == (32, 24, 16)
    assert index.cases == ("BRATS_009",)
    assert len(index) == 240
    for name in ("case_number", "corner_vox", "voxels", "class_centred"):
        assert np.array_equal(getattr(index, name), getattr(written, name)), name
        assert getattr(index, name).dtype == getattr(written, name).dtype, name
    table = pq.read_table(path).to_pydict()
    assert table["case"][0] == "BRATS_009"
    assert [table[f"size_{axis}_vox"][0] for axis in "ijk"] == [32, 24, 16]
    assert (index.voxels.sum(axis=1) == 32 * 24 * 16).all()


def test_a_patch_may_reach_past_the_brain_but_not_past_the_scan(
    prepared_demo: Prepared, tmp_path: Path
) -> None:
    both = trained_on(prepared_demo, "BRATS_009", "BRATS_119")
    index = patch(patch_section(), both, (160, 160, 16), tmp_path)
    for number, name in enumerate(index.cases):
        case = prepared_demo.cases[name]
        corners = index.corner_vox[index.case_number == number]
        assert len(corners) == 240
        assert (corners >= 0).all()
        assert (corners + index.size_vox <= case.ras_shape_vox).all()
        assert case.box.size_vox[0] < 160
        assert (corners[:, 0] < case.box.start_vox[0]).any()


def test_the_demo_s_validation_is_sound(prepared_demo: Prepared, tmp_path: Path) -> None:
    """Enough of each class, a margin as wide as the network sees, room for every size."""
    from gliotrail.segmentation.unet import receptive_radius_vox

    values = params.load(ROOT / "params.yaml")
    block = values.prepare.split.validation
    assert isinstance(block, params.ValidationBlock)
    assert block.margin_vox >= receptive_radius_vox(values.train.model.depth)
    (region,) = prepared_demo.split.validation
    assert region.box is not None
    labels = read_labels(prepared_demo.cases[region.case], region.box)
    assert np.bincount(labels.ravel(), minlength=4).min() >= 500
    kept_out = prepared_demo.split.kept_out[region.case]
    assert kept_out == region.box.grown(block.margin_vox)
    for size in values.patch.sizes:
        index = patch(values.patch, prepared_demo, size, tmp_path)
        assert len(index) == values.patch.per_case
        assert index.cases == ("BRATS_009",)
        for corner in corners_of(index):
            assert not Box.at(corner, size).touches(kept_out)


def refused(section: params.Patch, prepared: Prepared, size: Vox3, out: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        patch(section, prepared, size, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_size_or_case_without_a_patch_is_refused_by_name(
    prepared_crops: Prepared, tmp_path: Path
) -> None:
    section, out = patch_section(), tmp_path / "patch"
    both = trained_on(prepared_crops, "BRATS_009", "BRATS_119")
    message = (
        "BRATS_119: patch size: wanted at most 64x64x16, its scan, got 16x16x20; take others in "
    )
    refused(section, both, (16, 16, 20), out, message)
    everywhere = trained_on(prepared_crops, "BRATS_009", kept_out=Box((0, 0, 5), (64, 64, 30)))
    message = "BRATS_009: patches of 8x8x8: wanted one clear of the validation block"
    refused(section, everywhere, (8, 8, 8), out, message)
    message = r"BRATS_009: patches of 64x64x32: wanted a background share below 0.1, got at least 0"
    refused(patch_section(background_below=0.1), both, (64, 64, 32), out, message)


def test_training_cases_without_any_class_have_empty_patches_of_the_body(
    raw_crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_values(raw_crops / "labelsTr/BRATS_119.nii.gz", np.zeros_like)
    split = split_section(test=[], validation=0.0)
    prepare(split, raw_crops, tmp_path / "prepare", processes=1)
    prepared = load_prepared(tmp_path / "prepare")
    index = patch(patch_section(per_case=20), prepared, (8, 8, 8), tmp_path / "patch")
    empty = index.only(["BRATS_119"])
    assert len(empty) == 20
    assert not empty.voxels[:, 1:].any()
    assert (empty.voxels[:, 0] == 512).all()
    case = prepared.cases["BRATS_119"]
    centres = empty.corner_vox + 4 - case.box.start_vox
    assert all(case.image_CIJK[:, *centre].any() for centre in centres)
    assert "without any class, whose patches show none: BRATS_119" in capsys.readouterr().err

    with_values(raw_crops / "labelsTr/BRATS_009.nii.gz", np.zeros_like)
    prepare(split, raw_crops, tmp_path / "prepare", processes=1)
    message = "labels of all training cases: wanted some edema or non_enhancing or enhancing, got"
    refused(
        patch_section(), load_prepared(tmp_path / "prepare"), (8, 8, 8), tmp_path / "out", message
    )


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no.parquet: no such file; run the stage patch first"):
        read_index(tmp_path / "no.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a.parquet: patch index: got"):
        read_index(tmp_path / "a.parquet")
    pq.write_table(pa.table({"case": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: patch index: wanted rows of case, corner_i"):
        read_index(tmp_path / "b.parquet")


def test_an_unusable_size_ends_the_stage_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.patch", "48x48"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "a patch size such as 48x48x16 is wanted, got '48x48'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
