"""Data sets of any channels and classes at crop size, made of what is in the repository.

`tests/cases/base` are four synthetic patients in the Decathlon's layout; most are made of them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tests.support.projects import ROOT
from tests.support.scans import edit_json

BASE = ROOT / "tests/cases/base"
NAMES = ("SYN_001", "SYN_002", "SYN_003", "SYN_004")
Change = Callable[[Path], None]

PARAMS_AT_CROP_SIZE: Mapping[str, Any] = {
    "prepare.split": {"seed": 7, "test": ["SYN_004"], "validation": ["SYN_003"]},
    "patch.sizes": ["16x16x16"],
    "patch.per_case": 6,
    "patch.background_below": 1.0,
    "sweep.space": {"learning_rate": {"choice": [3e-3]}, "patch_size": {"choice": ["16x16x16"]}},
    "sweep.epoch_voxels": 4 * 16**3,
    "train.learning_rate": 3e-3,
    "train.patch_size": "16x16x16",
    "train.model.base_filters": 2,
    "train.init": "scratch",
    "train.rehearsal": 0,
    "train.epochs": 2,
    "train.epoch_voxels": 4 * 16**3,
}


def rewritten(path: Path, change: Callable[[Any], Any], spacing_mm: tuple[float, ...] = ()) -> None:
    file = nib.load(path)
    affine = np.diag([*spacing_mm, 1.0]) if spacing_mm else file.affine
    nib.save(nib.Nifti1Image(change(np.asarray(file.dataobj)), affine), path)


def of_every(root: Path, images: Callable[[Any], Any], labels: Callable[[Any], Any]) -> None:
    for name in NAMES:
        rewritten(root / f"imagesTr/{name}.nii.gz", images)
        rewritten(root / f"labelsTr/{name}.nii.gz", labels)


def as_it_is(root: Path) -> None:
    """Brain tumours, as the Decathlon tells of them."""


def nnu_net(root: Path) -> None:
    """Brain tumours, as nnU-Net tells of them: by regions, channels in another order."""
    shutil.copy(ROOT / "tests/cases/nnunet-dataset.json", root / "dataset.json")


def lesions(root: Path) -> None:
    """One class in four channels."""
    labels = {"0": "background", "1": "lesion"}
    edit_json(root / "dataset.json", lambda values: values.update(labels=labels, name="lesions"))
    of_every(root, lambda image: image, lambda codes: (codes > 0).astype(np.uint8))


def flair_alone(root: Path) -> None:
    """One channel, two classes, of which some voxels nobody knows."""
    description = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "rim": 7, "core": 9, "ignore": 4},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    of_every(
        root,
        lambda image: image[..., 0],
        lambda codes: np.array([0, 7, 9, 4], np.uint8)[codes],
    )


def ct(root: Path) -> None:
    """A phantom of known Hounsfield numbers: air, water, a bright class."""
    description = {
        "name": "phantom",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "bone"},
        "training": [
            {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
            for name in NAMES
        ],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    for name in NAMES:
        labels = root / f"labelsTr/{name}.nii.gz"
        codes = np.asarray(nib.load(labels).dataobj)
        rewritten(
            root / f"imagesTr/{name}.nii.gz",
            lambda image, codes=codes: np.where(
                codes > 0, 700 + image[..., 0] % 7, np.where(image[..., 0] != 0, 0, -1024)
            ).astype(np.int16),
        )
        rewritten(labels, lambda codes: (codes > 0).astype(np.uint8))


def thick(root: Path) -> None:
    """Brain tumours in slices of 2 and 3 mm."""
    for n, name in enumerate(NAMES):
        for kind in ("images", "labels"):
            path = root / f"{kind}Tr/{name}.nii.gz"
            rewritten(path, lambda values: values, (1, 1, 2 + n % 2))


def heads(root: Path, channels: tuple[str, ...] = ("FLAIR", "T1", "T1POST", "T2")) -> None:
    """MS lesions in two real heads, four crops of 32 x 32 x 32 voxels."""
    shutil.rmtree(root)
    kept = {"SYN_001": ("19", 30, 68, 58), "SYN_002": ("19", 62, 68, 58)}
    kept |= {"SYN_003": ("19", 46, 36, 58), "SYN_004": ("07", 47, 56, 50)}
    for name, (patient, *corner) in kept.items():
        box = tuple(slice(n, n + 32) for n in corner)
        head = ROOT / f"data/pretrain/open_ms_patient{patient}"
        for n, channel in enumerate(channels):
            _crop(head / f"{channel}.nii.gz", root / f"imagesTr/{name}_{n:04d}.nii.gz", box)
        _crop(head / "lesion_mask.nii.gz", root / f"labelsTr/{name}.nii.gz", box)
    description = {
        "name": "MS lesions",
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))


def flair_of_heads(root: Path) -> None:
    """The same with FLAIR alone."""
    heads(root, ("FLAIR",))


def _crop(source: Path, to: Path, box: tuple[slice, ...]) -> None:
    file = nib.load(source)
    to.parent.mkdir(parents=True, exist_ok=True)
    nib.save(file.slicer[box], to)


def brats_folders(root: Path) -> None:
    """Whole patients as BraTS 2021 has them: a folder each, its codes, LPS."""
    for name in NAMES:
        image = nib.load(root / f"imagesTr/{name}.nii.gz")
        new = f"BraTS2021_0{name[-4:].replace('_', '0')}"
        for n, channel in enumerate(("flair", "t1", "t1ce", "t2")):
            one = nib.Nifti1Image(np.asarray(image.dataobj)[..., n], image.affine)
            _save_lps(one, root / f"brats/{new}/{new}_{channel}.nii.gz")
        labels = nib.load(root / f"labelsTr/{name}.nii.gz")
        codes = np.array([0, 2, 1, 4], np.uint8)[np.asarray(labels.dataobj)]
        _save_lps(nib.Nifti1Image(codes, labels.affine), root / f"brats/{new}/{new}_seg.nii.gz")


def _save_lps(image: Any, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented([[0, -1], [1, -1], [2, 1]]), to)
