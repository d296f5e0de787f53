"""The temporary projects that other tests run commands in."""

import nibabel as nib
import numpy as np
import pytest

from gliotrail import params
from gliotrail.imaging.geometry import Box
from tests.support.brain import CHANNELS, voxels_per_label
from tests.support.projects import CROPS_PARAMS, ROOT, Project, clone_into, set_params


def make_repository(root):
    root.mkdir()
    (root / "tracked.txt").write_text("first")
    (root / "gone.txt").write_text("gone")
    (root / ".gitignore").write_text("*.log\n")
    project = Project(root)
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "first")
    return root


def test_a_clone_has_work_that_is_not_committed_yet_and_nothing_that_git_ignores(tmp_path):
    source = make_repository(tmp_path / "source")
    (source / "tracked.txt").write_text("changed")
    (source / "new.txt").write_text("new")
    (source / "gone.txt").unlink()
    (source / "junk.log").write_text("ignored")

    project = clone_into(tmp_path / "clone", source)

    assert (project.root / "tracked.txt").read_text() == "changed"
    assert (project.root / "new.txt").exists()
    assert not (project.root / "gone.txt").exists()
    assert not (project.root / "junk.log").exists()
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_a_clone_runs_its_own_code(clone):
    code = "import gliotrail, pipelines, sys; print(gliotrail.__file__, pipelines.__file__)"
    for path in clone.run("python", "-c", code).stdout.split():
        assert path.startswith(str(clone.root))


def test_the_crops_params_are_valid_and_keep_the_comments(crops_project):
    path = crops_project.root / "params.yaml"
    values = params.load(path)
    assert values.fetch.source == "raw"
    assert values.train.model.base_filters == CROPS_PARAMS["train.model.base_filters"]
    original = (ROOT / "params.yaml").read_text()
    assert path.read_text().count("#") == original.count("#") > 5


def test_a_params_key_that_is_not_there_is_refused(crops_project):
    with pytest.raises(KeyError, match="lerning_rate"):
        set_params(crops_project.root / "params.yaml", {"train.lerning_rate": 1})


def test_the_crops_validation_block_and_patch_sizes_fit_the_crops(crops_project):
    values = params.load(crops_project.root / "params.yaml")
    split = values.prepare.split
    block = Box(split.validation.start_vox, split.validation.stop_vox)
    labels = {}
    for case in (split.validation.case, *split.test):
        image = nib.load(crops_project.root / f"raw/imagesTr/{case}.nii.gz")
        labels[case] = np.asanyarray(
            nib.load(crops_project.root / f"raw/labelsTr/{case}.nii.gz").dataobj
        )
        assert image.shape == (*labels[case].shape, len(CHANNELS))
    trained = labels[split.validation.case]
    assert min(voxels_per_label(trained[block.slices])[1:]) >= 500
    margin_vox = split.validation.margin_vox
    left = trained[:, : block.start_vox[1] - margin_vox]
    assert min(voxels_per_label(left)[1:]) >= 500
    for size in values.patch.sizes:
        assert all(np.array(size) <= left.shape)
        assert all(np.array(size) <= block.size_vox)
        assert all(np.array(size) <= labels["BRATS_119"].shape)
        assert all(n % 2 ** (values.train.model.depth - 1) == 0 for n in size)
