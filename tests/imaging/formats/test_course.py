import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gliotrail.errors import DataError
from gliotrail.imaging.formats.course import export_patches, standardized_patch
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.patch import PatchIndex, patch
from gliotrail.imaging.prepared import Prepared, read_labels_patch, read_patch
from tests.support.scans import ROOT, patch_section

COURSE = ROOT / "tests/data/course_patches"
FILES = sorted(COURSE.glob("*.h5"))
SIZE = (160, 160, 16)


def read(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The image (C, I, J, K) and the labels (I, J, K) of a file of the course."""
    with h5py.File(path) as store:
        return store["x"][...], store["y"][...].argmax(axis=-1)


def place(path: Path, prepared: Prepared) -> tuple[str, Box]:
    """Case and box of a course file, whose z counts in the 155 slices of the original scan."""
    found = re.fullmatch(r"(.+)\.nii\.gz_\d+_x(\d+)_y(\d+)_z(\d+)\.h5", path.name)
    assert found
    name, x, y, z = found.groups()
    slab_start = int(prepared.cases[name].affine_ras[2, 3])
    return name, Box.at((int(x), int(y), int(z) - slab_start), SIZE)


@pytest.mark.parametrize(
    ("file", "differing_values"),
    [*zip(FILES, (10_102, 6_575), strict=True)],
    ids=lambda v: str(v)[-9:],
)
def test_the_course_s_own_files_hold_what_a_patch_of_the_demo_holds(
    prepared_demo: Prepared, file: Path, differing_values: int
) -> None:
    # The demo's slabs were stitched from many such files, of which overlapping ones differ in up
    # to 0.74 % of their values (PROVENANCE.md); of these two 0.62 % and 0.40 % were outvoted.
    name, box = place(file, prepared_demo)
    image_CIJK, labels_IJK = read(file)
    got = read_patch(prepared_demo.cases[name], box, "none")
    assert np.array_equal(labels_IJK, read_labels_patch(prepared_demo.cases[name], box))
    assert np.array_equal((image_CIJK != 0).any(axis=0), (got != 0).any(axis=0))
    assert (image_CIJK != got).sum() == differing_values
    assert differing_values / got.size < 0.0074


@pytest.fixture(scope="module")
def exported(prepared_demo: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Patches at the places of the course's own files, exported."""
    corners = [place(file, prepared_demo) for file in FILES]
    index = PatchIndex(
        size_vox=SIZE,
        cases=tuple(name for name, _ in corners),
        case_number=np.arange(2),
        corner_vox=np.array([box.start_vox for _, box in corners]),
        classes=prepared_demo.task.class_names,
        voxels=np.zeros((2, 4), np.int64),
        class_centred=np.zeros(2, bool),
    )
    return export_patches(prepared_demo, index, tmp_path_factory.mktemp("course") / "out")


def test_an_exported_patch_has_the_layout_of_the_course_s_files(
    prepared_demo: Prepared, exported: list[Path]
) -> None:
    assert [path.name for path in exported] == [
        "BRATS_009.nii.gz_1_x73_y11_z0.h5",
        "BRATS_119.nii.gz_1_x14_y41_z4.h5",
    ]
    for original, path in zip(FILES, exported, strict=True):
        with h5py.File(original) as theirs, h5py.File(path) as ours:
            assert sorted(ours) == sorted(theirs) == ["x", "y"]
            for key in "xy":
                for what in ("shape", "dtype", "compression", "compression_opts", "chunks"):
                    assert getattr(ours[key], what) == getattr(theirs[key], what), (key, what)
            assert np.array_equal(ours["y"][...], theirs["y"][...])
            name, box = place(original, prepared_demo)
            got = read_patch(prepared_demo.cases[name], box, "none")
            assert np.array_equal(ours["x"][...], got)
        assert np.array_equal(read(path)[0], got)


@pytest.mark.parametrize("corner", [(73, 11, 0), (-30, 100, 40), (230, 230, 45), (-99, 0, 0)])
def test_values_are_standardised_within_the_sub_volume_as_in_the_course(
    prepared_demo: Prepared, corner: tuple[int, int, int]
) -> None:
    case, box = prepared_demo.cases["BRATS_009"], Box.at(corner, (40, 50, 16))
    image = read_patch(case, box, "none").astype(np.float64)
    got = standardized_patch(case, box)
    for values, of_slice in zip(
        image.transpose(0, 3, 1, 2).reshape(64, -1),
        got.transpose(0, 3, 1, 2).reshape(64, -1),
        strict=True,
    ):
        std = values.std()
        expected = (values - values.mean()) / std if std else np.zeros_like(values)
        assert np.allclose(of_slice, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(standardized_patch(case, box, fused=True), got)


def test_the_first_patches_of_an_index_are_exported_once_each(
    prepared_crops: Prepared, tmp_path: Path
) -> None:
    index = patch(patch_section(), prepared_crops, (16, 16, 8), tmp_path / "patch")
    out = tmp_path / "course"
    raw = export_patches(prepared_crops, index, out, limit=5)
    assert [path.name.split("_")[2] for path in raw] == ["1", "2", "3", "4", "5"]
    assert sorted(raw) == sorted(out.iterdir())
    with pytest.raises(DataError, match="folder: wanted a new one, got something that is there"):
        export_patches(prepared_crops, index, out)
    other = tmp_path / "standardized"
    again = export_patches(prepared_crops, index, other, limit=5, values="standardized")
    assert [path.name for path in again] == [path.name for path in raw]
    case = prepared_crops.cases[index.cases[index.case_number[4]]]
    expected = standardized_patch(case, Box.at(index.corner_vox[4], index.size_vox))
    assert np.array_equal(read(again[4])[0], expected)
    with pytest.raises(DataError, match="values: wanted raw or standardized, got 'z'"):
        export_patches(prepared_crops, index, tmp_path / "z", values="z")
