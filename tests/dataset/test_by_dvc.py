"""Data sets of any kind by a real `dvc repro`, and docs/how-to/own-data.md to the letter.

`make dataset-test`. The same stages in one process are in test_stages.py.
"""

import json
import resource
import shutil
from pathlib import Path
from time import perf_counter
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ruamel.yaml import YAML

from tests.support.data_sets import (
    BASE,
    NAMES,
    PARAMS_AT_CROP_SIZE,
    Change,
    brats_folders,
    ct,
    flair_of_heads,
    heads,
    rewritten,
)
from tests.support.documents import blocks, write_own_parts
from tests.support.projects import ROOT, Project, clone_into, set_params

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
ONE_PROCESS = {"GLIOTRAIL_WORKERS": "1", "GLIOTRAIL_CONCURRENT_TRIALS": "1"}
PATIENCE_S = 1800
FROM_SWEEP = {"train.learning_rate": "from_sweep", "train.patch_size": "from_sweep"}
OWN_PARTS = {
    "train.model.name": "my_nets:Small",
    "train.loss": "my_losses:tversky",
    "train.augment.own": ["my_changes:lost_channel"],
    "evaluate.measures": ["my_measures:volume_error_ml"],
}


def project_on(tmp_path: Path, change: Change, **changes: Any) -> Project:
    """A clone beside the data set, its params at crop size."""
    shutil.copytree(BASE, tmp_path / "raw")
    change(tmp_path / "raw")
    project = clone_into(tmp_path / "project")
    fixed = {"fetch.source": "../raw", "picture.animations": False}
    set_params(project.root / "params.yaml", PARAMS_AT_CROP_SIZE | fixed | changes)
    return project


def repro(project: Project) -> str:
    return project.run("dvc", "repro", timeout_s=PATIENCE_S, **ONE_PROCESS).stdout


def metrics_of(project: Project) -> Any:
    return json.loads((project.root / "results/evaluate/metrics.json").read_text())


@pytest.mark.parametrize(
    ("change", "values", "channels", "model", "names"),
    [
        (heads, {}, ("FLAIR", "T1w", "T1gd", "T2w"), "gliotrail-ms_lesions", ["lesion"]),
        (flair_of_heads, FROM_SWEEP, ("FLAIR",), "gliotrail-ms_lesions", ["lesion"]),
        (ct, {}, ("CT",), "gliotrail-phantom", ["bone"]),
    ],
    ids=["four channels, one class", "FLAIR alone", "CT"],
)
def test_from_files_to_the_mask_of_a_new_scan(
    tmp_path: Path,
    change: Change,
    values: dict[str, Any],
    channels: tuple[str, ...],
    model: str,
    names: list[str],
) -> None:
    project = project_on(tmp_path, change, **values)
    repro(project)
    metrics = metrics_of(project)
    assert [*metrics["classes"], *metrics["regions"]] == names
    assert metrics["cases"] == 1
    assert "-> version 1" in project.run("gliotrail", "promote", f"{model}/1").stdout
    scans = sorted((project.root / "data/fetch/imagesTr").glob("SYN_004*"))
    given = [f"--channel={c}={path}" for c, path in zip(channels, scans, strict=True)]
    of_model = ("--model", f"models:/{model}@champion", "-o", "mask.nii.gz")
    project.run("gliotrail", "segment", *given, *of_model)
    mask = nib.load(project.root / "mask.nii.gz")
    assert mask.shape == nib.load(scans[0]).shape
    assert set(np.unique(mask.dataobj)) <= {0, 1}
    assert "Running stage" not in repro(project)


def test_brats_folders_are_imported_and_trained_on(tmp_path: Path) -> None:
    split = {"seed": 7, "test": ["BraTS2021_00004"], "validation": ["BraTS2021_00003"]}
    project = project_on(tmp_path, brats_folders, **{"prepare.split": split})
    (tmp_path / "raw/brats").rename(tmp_path / "brats")
    shutil.rmtree(tmp_path / "raw")
    project.run("gliotrail", "data", "import", "../brats", "--out", "../raw")
    repro(project)
    assert metrics_of(project)["regions"] == ["WT", "TC", "ET"]
    (mask,) = (project.root / "results/evaluate/masks").glob("*.nii.gz")
    like = nib.load(tmp_path / "brats/BraTS2021_00004/BraTS2021_00004_seg.nii.gz")
    assert nib.load(mask).shape == like.shape


def test_a_model_of_own_parts_is_made_again_from_what_its_run_recorded(tmp_path: Path) -> None:
    """Git knows nothing of the parts, and they are gone when the model is made again."""
    project = project_on(tmp_path, ct, **OWN_PARTS)
    write_own_parts(project.root / "own")
    repro(project)
    assert "volume_error_ml" in json.dumps(metrics_of(project))
    name = "models:/gliotrail-phantom/1"
    assert "not rebuildable" not in project.run("gliotrail", "trace", name).stdout
    for path in (project.root / "own").glob("*.py"):
        path.unlink()
    again = project.run("gliotrail", "reproduce", name, timeout_s=PATIENCE_S, **ONE_PROCESS)
    assert again.stdout.rstrip().endswith(": bit-identical")


def test_the_page_takes_three_patients_to_a_mask_within_five_minutes(tmp_path: Path) -> None:
    """Its description, its params and its commands, as they stand there."""
    page = blocks((ROOT / "docs/how-to/own-data.md").read_text(encoding="utf-8"))
    description = json.loads(next(block.text for block in page if block.language == "json"))
    project = clone_into(tmp_path)
    raw = project.root / "path/to/folder"
    cases = [*description["training"], *({"image": image} for image in description["test"])]
    assert len(description["training"]) == 3
    for name, case in zip(NAMES, cases, strict=True):
        for kind, file in case.items():
            (raw / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(BASE / f"{kind}sTr/{name}.nii.gz", raw / file)
            rewritten(raw / file, one_channel if kind == "image" else two_classes)
    (raw / "dataset.json").write_text(json.dumps(description))
    changes = next(block.text for block in page if block.language == "yaml")
    set_params(project.root / "params.yaml", dotted(YAML(typ="safe").load(changes)))

    started, before_s = perf_counter(), cpu_s()
    scripts = [block.script for block in page if block.tag == "run-long"]
    told = [
        project.run("bash", "-euo", "pipefail", "-c", s, timeout_s=PATIENCE_S).stdout
        for s in scripts
    ]
    took_s, used_s = perf_counter() - started, cpu_s() - before_s
    print("".join(told), f"the page took {took_s:.0f} s, {used_s:.0f} s of a core", sep="\n")
    assert nib.load(project.root / "mask.nii.gz").shape == (48, 48, 32)
    assert took_s <= 300


def one_channel(image: Any) -> Any:
    return image[..., 0]


def two_classes(codes: Any) -> Any:
    return np.minimum(codes, 2)


def dotted(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; what has no key of its own in params.yaml stays whole."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        whole = not isinstance(value, dict) or key in {"split", "space"}
        found |= {before + key: value} if whole else dotted(value, f"{before}{key}.")
    return found


def cpu_s() -> float:
    """Of all commands that ended, with what they started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
