"""Every stage of `dvc repro`, in this process, on data sets of any kind: to a registered model and
the mask of a new scan. Ray's part is in tests/cluster, DVC's in tests/spine.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from gliotrail import params
from gliotrail.cli.scans import segment
from gliotrail.cluster.evaluate import evaluate
from gliotrail.cluster.sweep import sweep
from gliotrail.cluster.train import train
from gliotrail.errors import ParamsError
from gliotrail.imaging.fetch import fetch
from gliotrail.imaging.formats.detect import import_any
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared
from gliotrail.param_types import FROM_SWEEP
from gliotrail.tracking.champion import crown, versions
from gliotrail.tracking.registry import MODEL
from tests.support.crops import train_in_this_process, try_here
from tests.support.data_sets import (
    BASE,
    NAMES,
    PARAMS_AT_CROP_SIZE,
    Change,
    brats_folders,
    ct,
    flair_of_heads,
    heads,
    of_every,
    rewritten,
)
from tests.support.projects import ROOT, set_params

SIZE = (16, 16, 16)


@dataclass(frozen=True)
class Pipeline:
    """The stages' folders in one place."""

    root: Path
    source: Path
    params: params.Params

    def run(self) -> None:
        section, prepared, patches = self.params, self.root / "prepare", self.root / "patch"
        fetch(section.fetch, self.root / "fetch")
        prepare(section.prepare, self.root / "fetch", prepared, processes=1)
        patch(section.patch, load_prepared(prepared), SIZE, patches)
        if section.train.learning_rate == FROM_SWEEP or not section.prepare.split.validation:
            sweep(section, prepared, patches, self.root / "sweep")
        train(section, prepared, patches, self.root / "sweep", self.root / "train")
        evaluate(section, prepared, self.root / "fetch", self.root / "train", self.root / "out")

    def metrics(self) -> Any:
        return json.loads((self.root / "out/metrics.json").read_text())

    def curve(self) -> str:
        return (self.root / "train/validation.csv").read_text()


@pytest.fixture
def pipeline(
    tmp_path: Path, new_state: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Pipeline]:
    """On a data set that a change makes of tests/cases/base, with other params."""
    new_state()
    train_in_this_process(monkeypatch)
    try_here(monkeypatch)

    def make(change: Change, source: str = "raw", **values: Any) -> Pipeline:
        shutil.copytree(BASE, tmp_path / "raw")
        change(tmp_path / "raw")
        path = tmp_path / "params.yaml"
        shutil.copyfile(ROOT / "params.yaml", path)
        changes = {"fetch.source": str(tmp_path / source), **PARAMS_AT_CROP_SIZE, **values}
        set_params(path, changes)
        return Pipeline(tmp_path, tmp_path / source, params.load(path))

    return make


def imported(root: Path) -> None:
    """BraTS' folders, imported."""
    brats_folders(root)
    import_any(root / "brats", root.with_name("imported"))


SWEPT = {"train.learning_rate": FROM_SWEEP, "train.patch_size": FROM_SWEEP}
BRATS_SPLIT = {"seed": 7, "test": ["BraTS2021_00004"], "validation": ["BraTS2021_00003"]}


@pytest.mark.parametrize(
    ("change", "values", "model", "names"),
    [
        (heads, {}, "gliotrail-ms_lesions", ["lesion"]),
        (flair_of_heads, SWEPT, "gliotrail-ms_lesions", ["lesion"]),
        (ct, {}, "gliotrail-phantom", ["bone"]),
        (
            imported,
            {"source": "imported", "prepare.split": BRATS_SPLIT},
            "gliotrail-unet3d",
            ["edema", "non_enhancing", "enhancing", "WT", "TC", "ET"],
        ),
    ],
    ids=["four channels, one class", "FLAIR alone", "CT", "BraTS' whole patients"],
)
def test_from_files_to_a_registered_model_and_a_new_scans_mask(
    pipeline: Callable[..., Pipeline],
    change: Change,
    values: dict[str, Any],
    model: str,
    names: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is told is of this data set, in its names."""
    made = pipeline(change, **values)
    made.run()
    metrics = made.metrics()
    assert metrics["cases"] == 1
    assert [*metrics["classes"], *metrics["regions"]] == names
    assert all(f"dice_{name}" in made.curve().split("\n")[0] for name in names)
    number = "1" if model == MODEL else f"{model}/1"
    assert f"only `gliotrail promote {number}` makes it champion" in capsys.readouterr().err
    crown(number)
    (row,) = versions()
    assert (row["model"], row["aliases"]) == (model, ["champion", "promoted"])
    assert row["validation_dice"] is not None
    assert row["names"] == (metrics["regions"] or metrics["classes"])
    assert set(row["held_out_dice"]) <= {*names, "mean_classes", "mean_regions"}

    scans = sorted((made.root / "fetch/imagesTr").glob("*4*.nii.gz"))
    uri, mask = f"models:/{model}@champion", made.root / "mask.nii.gz"
    channels = metrics_channels(made)
    given = [f"{channel}={path}" for channel, path in zip(channels, scans, strict=False)]
    one = scans[0] if len(scans) == 1 else None
    segment(mask, scan=one, channel=None if one else given, model=[uri], threshold=0.3)
    assert nib.load(mask).shape == nib.load(scans[0]).shape[:3]
    assert set(np.unique(nib.load(mask).dataobj)) <= {0, 1, 2, 3}


def metrics_channels(made: Pipeline) -> tuple[str, ...]:
    return load_prepared(made.root / "prepare").task.channel_names


def test_a_training_case_without_any_class_trains_and_is_told(
    pipeline: Callable[..., Pipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    def empty(root: Path) -> None:
        ct(root)
        rewritten(root / "labelsTr/SYN_001.nii.gz", np.zeros_like)
        rewritten(root / "labelsTr/SYN_004.nii.gz", np.zeros_like)

    made = pipeline(empty)
    made.run()
    assert "training cases without any class, whose patches show none: SYN_001" in (
        capsys.readouterr().err
    )
    assert made.metrics()["bone"]["defined"] in {0, 1}  # 0 where nothing is predicted either


def test_without_validation_data_the_last_weights_are_kept_unmeasured(
    pipeline: Callable[..., Pipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    made = pipeline(
        ct,
        **{
            "prepare.split": {"seed": 7, "test": [], "validation": 0},
        },
    )
    made.run()
    told = capsys.readouterr().err
    assert "no validation data, and train takes nothing from a sweep: no trial is run" in told
    assert told.count("no validation data: the training is not measured") == 1
    assert "only `gliotrail promote gliotrail-phantom/1` makes it champion" in told
    assert "not measured on held-out patients" in told
    (row,) = versions()
    assert (row["validation_dice"], row["held_out_dice"], row["aliases"]) == (None, {}, [])
    assert made.curve() == "step\n"
    run = json.loads((made.root / "train/run.json").read_text())
    assert run["ended"]["status"] == "FINISHED"
    assert run["ended"]["summary"] == {"step": 2}
    made.run()  # nothing new
    assert len(versions()) == 1


def test_without_validation_data_nothing_can_be_chosen_by_them(
    pipeline: Callable[..., Pipeline],
) -> None:
    without = {"prepare.split": {"seed": 7, "test": [], "validation": 0}}
    made = pipeline(ct, **without, **SWEPT)
    with pytest.raises(
        ParamsError, match=r"sweep: no validation data.*give train.learning_rate and"
    ):
        made.run()
    fixed = {"train.learning_rate": 3e-3, "train.patch_size": "16x16x16", "train.keep": "best"}
    set_params(made.root / "params.yaml", fixed)
    again = Pipeline(made.root, made.source, params.load(made.root / "params.yaml"))
    with pytest.raises(
        ParamsError, match=r"train.keep: best: no validation data.*train.keep: last"
    ):
        again.run()


def test_a_data_set_of_no_class_at_all_is_refused(pipeline: Callable[..., Pipeline]) -> None:
    def empty(root: Path) -> None:
        of_every(root, lambda image: image, np.zeros_like)

    assert len(NAMES) == 4
    with pytest.raises(Exception, match=r"labels of all training cases: wanted .*got none"):
        pipeline(empty).run()
