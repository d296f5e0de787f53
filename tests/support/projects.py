"""Temporary clones of the working tree, uncommitted work included, to run whole commands in."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]

CROPS_PARAMS: Mapping[str, Any] = {
    "fetch.source": "raw",
    "prepare.split.validation.start_vox": [0, 48, 0],
    "prepare.split.validation.stop_vox": [64, 64, 32],
    "patch.sizes": ["16x16x8", "16x16x16"],
    "patch.per_case": 12,
    "sweep.space.learning_rate.choice": [3e-3],
    "sweep.space.patch_size.choice": ["16x16x8", "16x16x16"],
    "sweep.epochs": 1,
    "sweep.epoch_voxels": 4 * 4 * 16**3,
    # one head and one shape for both: read once
    "pretrain.phantoms.anatomies": ["open_ms_patient07"],
    "pretrain.phantoms.shapes": ["BRATS_001"],
    "pretrain.validation.anatomies": ["open_ms_patient07"],
    "pretrain.validation.shapes": ["BRATS_001"],
    "pretrain.validation.scans": 1,
    "pretrain.validation.size": "32x32x24",
    "train.model.base_filters": 4,
    "train.init": "scratch",
    "train.epochs": 2,
    "train.epoch_voxels": 4 * 4 * 16**3,
}
"""What makes params.yaml fit the crops (64x64x32 and 64x64x16) and a test's patience."""


@dataclass(frozen=True)
class Project:
    """A checkout in a temporary folder. Its commands find this .venv and its own code."""

    root: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment of the project's commands."""
        env = {**os.environ, "PYTHONPATH": str(self.root / "platform")}
        env.pop("GLIOTRAIL_STATE", None)
        return env

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's root; stdout and stderr are captured, together.

        Raises:
            AssertionError: it ended with another code than 0 (unless check=False).
        """
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
            )
        return done


def clone_into(root: Path, source: Path = ROOT) -> Project:
    """Copy what git tracks, and what it would track, and commit it there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (source / name).is_file():  # a deleted file is still in git's index
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, root / name, follow_symlinks=False)
    project = Project(root)
    project.run("git", "init", "--quiet")
    commit(project, "The working tree as it was")
    return project


def commit(project: Project, message: str) -> None:
    """Commit all changes of a project."""
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", message)


def set_params(path: Path, changes: Mapping[str, Any]) -> None:
    """Change values of a params.yaml by their dotted keys; comments and all else stay.

    Raises:
        KeyError: a key that is not there.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    values = yaml.load(path)
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        if last not in section:
            raise KeyError(key)
        section[last] = value
    yaml.dump(values, path)


def use_crops(project: Project) -> Project:
    """Lay out the crops in the Decathlon's layout as raw/, and fit params.yaml to them."""
    demo = project.root / "data/demo"
    for kind in ("image", "label"):
        folder = project.root / "raw" / f"{kind}sTr"
        folder.mkdir(parents=True)
        for case in ("BRATS_009", "BRATS_119"):
            shutil.copy(demo / f"crops/{case}_crop_{kind}.nii.gz", folder / f"{case}.nii.gz")
    shutil.copy(demo / "dataset.json", project.root / "raw")
    set_params(project.root / "params.yaml", CROPS_PARAMS)
    commit(project, "Use the crops")
    return project


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The working tree in a temporary folder. Shared: change nothing in it."""
    return clone_into(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def crops_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose raw data are the crops, a module's own; nothing has been run in it."""
    return use_crops(clone_into(tmp_path_factory.mktemp("crops")))


@dataclass(frozen=True)
class Reproduced:
    """A project in which `dvc repro` has ended, and what it printed."""

    project: Project
    log: str


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    """The one whole `dvc repro` of a test session, on the crops. Shared: change nothing in it."""
    project = use_crops(clone_into(tmp_path_factory.mktemp("reproduced")))
    # several workers and trials at once are run elsewhere; one starts sooner beside other tests
    one = {"GLIOTRAIL_WORKERS": "1", "GLIOTRAIL_CONCURRENT_TRIALS": "1"}
    return Reproduced(project, project.run("dvc", "repro", timeout_s=280, **one).stdout)


@pytest.fixture(scope="module")
def reproduced_copy(reproduced: Reproduced, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A module's own copy of the reproduced project, to run further commands in.

    MLflow keeps absolute paths, so pictures and models are still read from the first project.
    """
    root = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(reproduced.project.root, root, symlinks=True)
    return Project(root)
