"""Real scans for tests: the crops in the Decathlon's layout, prepared arrays of crops and demo."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from gliotrail import params
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import Prepared, load_prepared

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "data/demo"
CASES = ("BRATS_009", "BRATS_119")


def lay_out_crops(folder: Path) -> Path:
    """The two crops as a folder in the Decathlon's layout."""
    for kind in ("image", "label"):
        (folder / f"{kind}sTr").mkdir(parents=True)
        for case in CASES:
            crop = DEMO / f"crops/{case}_crop_{kind}.nii.gz"
            shutil.copyfile(crop, folder / f"{kind}sTr/{case}.nii.gz")
    shutil.copyfile(DEMO / "dataset.json", folder / "dataset.json")
    return folder


def split_section(**changes: Any) -> params.Prepare:
    """The params of `prepare`: train on BRATS_009, test on BRATS_119, unless changed."""
    values = {"seed": 7, "test": ["BRATS_119"], "validation": []}
    return params.Prepare.model_validate({"spacing": "native", "split": values | changes})


def patch_section(**changes: Any) -> params.Patch:
    """The params of `patch`, as in params.yaml unless changed."""
    values = params.load(ROOT / "params.yaml").patch.model_dump(mode="json")
    return params.Patch.model_validate(values | changes)


def augmented(**changes: float) -> params.Augment:
    """No random change but those that are named."""
    none = dict.fromkeys(params.Augment.model_fields, 0.0)
    return params.Augment.model_validate(none | {"own": []} | changes)


def rewrite(path: Path, change: Callable[[bytearray], bytes | bytearray | None]) -> None:
    """Change the unpacked bytes of a `.nii.gz` in place; `change` edits them or returns others."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    changed = change(content)
    path.write_bytes(gzip.compress(content if changed is None else changed, 1, mtime=0))


def save(path: Path, array: Any, affine: Any = None, **header: Any) -> Path:
    """Write an array with nibabel; the identity is the affine unless another is given."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def with_values(path: Path, change: Callable[[Any], Any], affine: Any = None) -> None:
    """Replace the array of a NIfTI file by `change` of it, and the affine if one is given."""
    image = nib.load(path)
    values = np.asarray(image.dataobj).copy()
    save(path, change(values), image.affine if affine is None else affine)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def raw_crops(tmp_path: Path) -> Path:
    """The crops in the Decathlon's layout; the test's own, to spoil."""
    return lay_out_crops(tmp_path / "raw")


@pytest.fixture(scope="session")
def prepared_crops(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The crops, prepared. Shared: change nothing."""
    folder = tmp_path_factory.mktemp("prepared_crops")
    prepare(split_section(), lay_out_crops(folder / "raw"), folder / "prepare", processes=1)
    return load_prepared(folder / "prepare")


@pytest.fixture(scope="session")
def prepared_demo(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The demo, prepared as params.yaml says. Shared: change nothing."""
    out = tmp_path_factory.mktemp("prepared_demo") / "prepare"
    prepare(params.load(ROOT / "params.yaml").prepare, DEMO, out, processes=1)
    return load_prepared(out)
