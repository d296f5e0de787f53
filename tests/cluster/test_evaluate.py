import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from gliotrail.cli.scans import _trained
from gliotrail.cluster.evaluate import (
    evaluate,
    measures_of,
    rows_of,
    summary,
    trained_on,
    unseen,
)
from gliotrail.cluster.train import EXPERIMENT, export, finish
from gliotrail.dataset.brats import BRATS
from gliotrail.errors import DataError, TrackingError
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import Prepared
from gliotrail.imaging.split import Region, Split
from gliotrail.params import Params
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import Origin
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.score import score
from gliotrail.tracking.champion import crown
from gliotrail.tracking.client import client, existing_run
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.evaluation_run import held_out
from gliotrail.tracking.registry import MODEL, champion, threshold_of
from gliotrail.training.description import describe_training, starting_artifacts
from gliotrail.training.driver import run_training
from tests.support.brain import CLASSES, REGIONS
from tests.support.crops import Crops
from tests.support.projects import Project, commit
from tests.support.scans import edit_json, lay_out_crops, save, snapshot
from tests.support.told import told

CASE = "BRATS_119"


@dataclass(frozen=True)
class Evaluated:
    """A model that was trained in this process, and what came of evaluating it."""

    crops: Crops
    state: Path
    params: Params
    run: RunFolder

    @property
    def trained(self) -> Path:
        return self.state / "train"

    @property
    def out(self) -> Path:
        return self.state / "evaluate"

    def evaluate(self, params: Params | None = None) -> None:
        evaluate(params or self.params, self.crops.prepared, self.crops.raw, self.trained, self.out)

    def metrics(self) -> dict[str, Any]:
        return json.loads((self.out / "metrics.json").read_text())

    def told(self) -> dict[str, Any]:
        server = client()
        own_id = self.run.describe()["id"]
        return told(server, existing_run(server, EXPERIMENT, own_id).info.run_id)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """The crops, the held-out patient's files in another orientation: axes j, k, i, mirrored."""
    there = Crops(tmp_path_factory.mktemp("turned"))
    lay_out_crops(there.raw)
    # a description may name any place in its folder
    (there.raw / "imagesTr").rename(there.raw / "scans")
    description = there.raw / "dataset.json"
    description.write_text(description.read_text().replace("imagesTr/", "scans/"))
    for path in there.raw.glob(f"*/{CASE}.nii.gz"):
        image = nib.load(path)
        was = nib.orientations.io_orientation(image.affine)
        wanted = nib.orientations.axcodes2ornt(("P", "S", "L"))
        turned = image.as_reoriented(nib.orientations.ornt_transform(was, wanted))
        save(path, np.asarray(turned.dataobj), turned.affine, descrip=b"turned")
        assert nib.aff2axcodes(nib.load(path).affine) == ("P", "S", "L")
    prepare(there.params().prepare, there.raw, there.prepared, processes=1)
    return there


def train_here(crops: Crops, params: Params, run: RunFolder, training: Any, out: Path) -> None:
    described = describe_training(training, Origin.now(), EXPERIMENT, "train")
    run.begin(described, starting_artifacts(training))
    run_training(training, run, World())
    finish(training, run)
    export(run, out)


@pytest.fixture(scope="module")
def evaluated(turned: Crops, crops: Crops, new_state: Callable[[], Path]) -> Iterator[Evaluated]:
    """Shared; a test that changes something puts it back."""
    state = new_state()
    shutil.copytree(crops.patches, turned.patches)
    params, training = turned.params(train__epochs=1), turned.training(train__epochs=1)
    done = Evaluated(turned, state, params, training.folder())
    train_here(turned, params, done.run, training, done.trained)
    deliver(done.run, client())
    done.evaluate()
    yield done


def test_scoring_the_saved_masks_gives_the_measures_again(evaluated: Evaluated) -> None:
    raw = evaluated.crops.raw
    ref = np.asarray(nib.load(raw / f"labelsTr/{CASE}.nii.gz").dataobj).astype(np.uint8)
    image = nib.load(raw / f"scans/{CASE}.nii.gz")
    mask = nib.load(evaluated.out / f"masks/{CASE}.nii.gz")
    again = score(
        ref,
        np.asarray(mask.dataobj).astype(np.uint8),
        mask.header.get_zooms(),
        (np.asarray(image.dataobj) != 0).any(axis=3),
    )
    once = json.loads((evaluated.out / "cases.json").read_text())
    assert list(once) == [CASE]
    assert flat(again.model_dump(mode="json")) == pytest.approx(flat(once[CASE]), abs=1e-12)
    metrics = evaluated.metrics()
    loss = metrics["soft_dice_loss"]
    assert flat(summary({CASE: again}, {CASE: loss}, BRATS)) == pytest.approx(
        flat(metrics), abs=1e-12
    )
    assert 0 < metrics["WT"]["dice"] < 1  # it is no empty mask that is compared


def flat(values: Any, key: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        return {k: v for name, of in values.items() for k, v in flat(of, f"{key}.{name}").items()}
    if isinstance(values, list | tuple):
        return flat(dict(enumerate(values)), key)
    return {key: values}


def test_a_mask_lies_on_the_grid_of_its_scan(evaluated: Evaluated) -> None:
    scan = nib.load(evaluated.crops.raw / f"scans/{CASE}.nii.gz")
    mask = nib.load(evaluated.out / f"masks/{CASE}.nii.gz")
    assert mask.shape == scan.shape[:3]
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(mask.affine, scan.affine)
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b",
                  "quatern_c", "quatern_d", "qoffset_x", "xyzt_units", "descrip"):  # fmt: skip
        np.testing.assert_array_equal(mask.header[field], scan.header[field])
    np.testing.assert_array_equal(mask.header["pixdim"][:4], scan.header["pixdim"][:4])


def test_there_is_a_picture_of_each_patient(evaluated: Evaluated) -> None:
    assert [p.name for p in (evaluated.out / "pictures").iterdir()] == [f"{CASE}.png"]
    assert [p.name for p in (evaluated.out / "viewers").iterdir()] == [f"{CASE}.html"]


def test_mlflow_gets_scores_and_files_under_few_keys(evaluated: Evaluated) -> None:
    of, metrics, server = evaluated.told(), evaluated.metrics(), client()
    run = existing_run(server, EXPERIMENT, evaluated.run.describe()["id"])
    scores = held_out(server, run)
    assert scores == measures_of(metrics, BRATS)
    # the training's own page would have a chart of a single dot for each
    assert not [key for key, *_ in of["points"] if key.startswith("test/")]
    below = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    (judged,) = server.search_runs([run.info.experiment_id], below)
    assert (judged.info.status, judged.data.tags["gliotrail.kind"]) == ("FINISHED", "evaluation")
    assert of["tags"]["gliotrail.held_out_dice"] == f"{metrics['mean_regions']:.3f}"
    assert scores["test/dice_WT"] == metrics["WT"]["dice"]
    assert scores["test/dice_mean_regions"] == metrics["mean_regions"]
    assert len(scores) <= 27
    names = (f"{CASE}.png", f"{CASE}.html", "metrics.json", "cases.json")
    assert {f"evaluation/{name}" for name in names} <= set(of["files"])
    assert of["status"] == "FINISHED"


def test_mlflow_reads_the_table_of_cases_as_a_table(evaluated: Evaluated) -> None:
    server = client()
    run = existing_run(server, EXPERIMENT, evaluated.run.describe()["id"])
    table = server.load_table(run.info.experiment_id, "evaluation/table.json", [run.info.run_id])
    assert list(table["case"].unique()) == [CASE]
    (row,) = table[table["of"] == "WT"].to_dict("records")
    assert row["dice"] == pytest.approx(evaluated.metrics()["WT"]["dice"], abs=1e-6)


def test_the_runs_page_tells_data_split_network_measures_and_how_to_make_it_again(
    evaluated: Evaluated,
) -> None:
    of, own_id = evaluated.told(), evaluated.run.describe()["id"]
    note = of["tags"]["mlflow.note.content"]
    dice = f"{evaluated.metrics()['WT']['dice']:.3f}"
    for wanted in (
        "FINISHED", "training BRATS_009", "held out BRATS_119", "unet3d, depth 2, base filters 2",
        "patch size 16x16x16", "best epoch | 1 of 1", f"gliotrail reproduce {own_id}",
    ):  # fmt: skip
        assert wanted in note
    (row,) = [line.split(" | ") for line in note.splitlines() if line.startswith("| WT ")]
    assert row[2] == dice
    linked = re.findall(r"/artifacts/([^?)]+)\?", note)
    assert (
        {"curves.png", "network.png", "evaluation/montage_1.png"} <= set(linked) <= set(of["files"])
    )


def test_undefined_measures_are_left_out() -> None:
    nothing = {"dice": None, "sensitivity": None, "specificity": 1.0, "hd95_mm": None}
    metrics = dict.fromkeys((*CLASSES, *REGIONS), nothing)
    means = {"soft_dice_loss": 0.5, "mean_classes": None, "mean_regions": None}
    told = measures_of(metrics | means, BRATS)
    assert told == {"test/soft_dice_loss": 0.5} | {
        f"test/specificity_{name}": 1.0 for name in (*CLASSES, *REGIONS)
    }


def test_evaluating_again_changes_nothing(evaluated: Evaluated) -> None:
    outputs, once = snapshot(evaluated.out), evaluated.told()
    evaluated.evaluate()
    assert snapshot(evaluated.out) == outputs
    assert evaluated.told() == once
    versions = client().search_model_versions(f"name = '{MODEL}'")
    assert [str(version.version) for version in versions] == ["1"]


def test_under_another_threshold_the_champion_is_judged_again(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown("1")  # the crops' trainings are shorter than params.yaml plans
    before = champion(client())
    other = evaluated.crops.params(train__epochs=1, train__seed=8, evaluate__threshold=0.6)
    training = evaluated.crops.training(train__epochs=1, train__seed=8, evaluate__threshold=0.6)
    run = training.folder()
    out = evaluated.state / "other"
    monkeypatch.chdir(evaluated.state)  # where no params.yaml plans a longer training
    train_here(evaluated.crops, other, run, training, out / "train")
    deliver(run, client())
    crops = evaluated.crops
    evaluate(other, crops.prepared, crops.raw, out / "train", out / "evaluate")
    after = client().get_model_version(MODEL, "1")
    assert before is not None
    assert after.tags["gliotrail.judged_on"] != before.tags["gliotrail.judged_on"]
    assert after.tags["gliotrail.score"] != before.tags["gliotrail.score"]
    theirs = [_trained(f"models:/{MODEL}/{n}")[1] for n in (1, 2)]
    assert theirs == [0.5, 0.6]  # what `segment` takes with them
    other_run = client().create_run("0").info.run_id
    client().create_registered_model("untold")
    client().create_model_version("untold", after.source, other_run)
    assert threshold_of("models:/untold/1", 0.3) == 0.3
    scores = {
        str(version.version): float(version.tags["gliotrail.score"])
        for version in client().search_model_versions(f"name = '{MODEL}'")
    }
    holder = champion(client())
    assert holder is not None
    assert str(holder.version) == max(scores, key=scores.__getitem__)


def test_without_mlflow_the_outputs_are_there_and_the_error_is_one_line(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = snapshot(evaluated.out)
    shutil.rmtree(evaluated.out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    with pytest.raises(TrackingError, match="MLflow: got"):
        evaluated.evaluate()
    assert snapshot(evaluated.out) == outputs


def test_what_is_missing_is_told_and_earlier_outputs_stay(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    outputs, crops = snapshot(evaluated.out), evaluated.crops
    with pytest.raises(DataError, match=r"dataset\.json"):
        evaluate(evaluated.params, crops.prepared, tmp_path, evaluated.trained, evaluated.out)
    fewer = tmp_path / "raw"
    shutil.copytree(crops.raw, fewer)
    for path in fewer.glob("*/BRATS_119.nii.gz"):
        path.unlink()
    edit_json(fewer / "dataset.json", lambda told: told["training"].pop())
    with pytest.raises(DataError, match="raw: no scan of BRATS_119; run `dvc repro prepare` again"):
        evaluate(evaluated.params, crops.prepared, fewer, evaluated.trained, evaluated.out)
    assert snapshot(evaluated.out) == outputs


def test_without_held_out_patients_the_model_is_registered_and_told_as_unmeasured(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crops, out = evaluated.crops, tmp_path / "out"
    shutil.copytree(crops.prepared, tmp_path / "prepare")
    split = json.loads((tmp_path / "prepare/split.json").read_text())
    (tmp_path / "prepare/split.json").write_text(json.dumps(split | {"test": []}))
    evaluate(evaluated.params, tmp_path / "prepare", crops.raw, evaluated.trained, out)
    assert "it is not measured on held-out patients" in capsys.readouterr().err
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["cases"], metrics["mean_regions"], measures_of(metrics, BRATS)) == (0, None, {})
    assert {path.name for path in out.iterdir()} == {
        path.name for path in evaluated.out.iterdir()
    }  # DVC wants all of its outputs


# DVC


@pytest.fixture(scope="module")
def versioned(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A git repository that has the measures for DVC, committed, then changed."""
    project = Project(tmp_path_factory.mktemp("dvc"))
    project.run("git", "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    (project.root / "dvc.yaml").write_text("metrics: [measures]\n")
    shutil.copytree(evaluated.out / "measures", project.root / "measures")
    commit(project, "first")
    rows = rows_of(evaluated.metrics(), BRATS)
    rows["WT"]["dice"], rows["ET"]["hd95_mm"] = 0.25, None
    for name in ("WT", "ET"):
        (project.root / f"measures/{name}.json").write_text(json.dumps(rows[name]))
    return project


def test_dvc_shows_a_row_for_each_class_and_region_and_few_columns(versioned: Project) -> None:
    lines = versioned.run("dvc", "metrics", "show").stdout.splitlines()
    assert lines[0].split() == [
        "Path", "cases", "dice", "hd95_mm", "sensitivity", "soft_dice_loss", "specificity",
    ]  # fmt: skip
    names = {line.split()[0] for line in lines[1:]}
    rows = (*CLASSES, *REGIONS, "mean_classes", "mean_regions")
    assert names == {f"measures/{name}.json" for name in rows}
    assert max(map(len, lines)) <= 120


def test_dvc_tells_what_changed(versioned: Project, evaluated: Evaluated) -> None:
    changed = json.loads(versioned.run("dvc", "metrics", "diff", "--json").stdout)
    was = evaluated.metrics()["WT"]["dice"]
    assert changed["measures/WT.json"] == {"dice": {"old": was, "new": 0.25, "diff": 0.25 - was}}
    assert set(changed) <= {"measures/WT.json", "measures/ET.json"}


def test_validation_data_that_a_model_was_trained_on_compare_nobody(
    prepared_crops: Prepared,
) -> None:
    """A block is new to who left it out, a whole scan only to who never saw it."""

    def split(*training: str, kept_out: Box | None = None, **validation: Box | None) -> Prepared:
        boxes = {training[0]: kept_out} if kept_out else {}
        regions = tuple(Region(case, box) for case, box in validation.items())
        made = Split(training, regions, (), boxes)
        return replace(prepared_crops, split=made)

    block, around, half = (Box((0, 0, 0), (n, 20, 20)) for n in (20, 30, 10))
    whole = split("BRATS_119", BRATS_009=None)
    assert unseen(whole, trained_on(whole)) == list(whole.split.validation)
    assert unseen(whole, trained_on(split("BRATS_009", "BRATS_119"))) == []
    assert unseen(whole, None) == []
    of_block = split("BRATS_009", kept_out=around, BRATS_009=block)
    assert unseen(of_block, trained_on(of_block)) == list(of_block.split.validation)
    assert unseen(of_block, trained_on(split("BRATS_009", kept_out=half))) == []
    assert unseen(whole, trained_on(of_block)) == []
    both = split("BRATS_119", BRATS_009=None, BRATS_119=block)
    assert unseen(both, trained_on(split("BRATS_119"))) == [Region("BRATS_009")]
