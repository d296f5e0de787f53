"""Numbers that are none, and scans that have nothing, or only one thing, in them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gliotrail.cluster.connection import Resources
from gliotrail.cluster.trials import _trial
from gliotrail.dataset.brats import BRATS
from gliotrail.errors import DataError, TrainingError
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import Prepared, load_prepared, read_patch
from gliotrail.params import Model
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.webhook import NOT_FINITE_FILE
from gliotrail.search.proposals import Trial
from gliotrail.segmentation import weights
from gliotrail.segmentation.batches import Patches
from gliotrail.segmentation.loop import SCORE, Plan, World, fit
from gliotrail.segmentation.score import score_files
from gliotrail.segmentation.unet import initialize
from gliotrail.tracking.client import client, existing_run
from gliotrail.tracking.delivery_thread import tracked
from gliotrail.training.driver import run_training
from tests.support.crops import Crops
from tests.support.environment import in_state
from tests.support.scans import augmented, edit_json, patch_section, save, split_section
from tests.support.told import told
from tests.support.tracked_runs import begun


@pytest.fixture
def spoilt(crops: Crops, tmp_path: Path) -> Crops:
    """Crops whose patches, once standardised, are no numbers."""
    there = Crops(Path(shutil.copytree(crops.root, tmp_path / "crops")))
    case = there.prepared / "cases/BRATS_009/case.json"
    edit_json(case, lambda values: values.update(std_C=[float("nan")] * 4))
    return there


def test_what_led_to_a_loss_that_is_no_number_is_kept_and_the_run_failed(
    spoilt: Crops, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    shutil.copy(database, state)
    in_state(state, monkeypatch)
    run, training = begun(state / "runs/spoilt"), spoilt.training()
    with pytest.raises(TrainingError, match="loss at step 1, ") as caught, tracked(run):
        run_training(training, run, World())
    ended = run.ended()
    assert ended is not None
    assert (ended["status"], ended["reason"]) == ("FAILED", str(caught.value)[:500])
    led = json.loads((run.root / "artifacts" / NOT_FINITE_FILE).read_text())
    assert led["step"] == 1
    assert led["losses"] == {"soft_dice": "nan"}
    assert 0 < led["learning_rate"] <= training.learning_rate
    assert len(led["samples"]) == training.section.batch_size
    for sample in led["samples"]:
        if sample["case"] == "BRATS_009":
            assert f"BRATS_009 at {tuple(sample['corner_vox'])}" in str(caught.value)
    server = client()
    of = told(server, existing_run(server, "tests", run.describe()["id"]).info.run_id)
    assert of["status"] == "FAILED"
    assert NOT_FINITE_FILE in of["files"]
    assert of["tags"]["gliotrail.ended"].startswith("loss at step 1, ")


def test_a_trial_that_diverges_ends_alone(spoilt: Crops, tmp_path: Path) -> None:
    """It raises nothing to Tune, which would try it again, and then end the sweep."""
    run = RunFolder(tmp_path / "trial")
    run.begin({})
    trial = Trial(0, {}, spoilt.training(), run)
    _trial({"trial": trial, "wanted": Resources(1, 1, 0), "retell": False, "first_weights": None})
    ended = run.ended()
    assert ended is not None
    assert ended["status"] == "FAILED"
    assert "loss at step 1" in ended["reason"] and "got nan" in ended["reason"]
    assert (run.root / "artifacts" / NOT_FINITE_FILE).is_file()


# odd scans


SHAPE = (20, 24, 16)


def odd_scan(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (I, J, K, C), and labels of one class, or of one voxel, or none."""
    values = np.random.default_rng(1).integers(1, 900, (*SHAPE, 4)).astype(np.float32)
    values[:4] = 0  # background
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:14, 8:14, 4:10] = 2
    if kind == "a constant channel":
        values[4:, ..., 1] = 0.1
    if kind == "constant channels":
        values[4:] = 0.1
    if kind == "an empty channel":
        values[..., 2] = 0
    if kind == "one voxel of tumour":
        labels[:] = 0
        labels[10, 12, 8] = 3
    if kind == "no tumour":
        labels[:] = 0
    return values, labels


KINDS = ("one class", "a constant channel", "constant channels", "an empty channel",
         "one voxel of tumour", "no tumour")  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A case of each kind, prepared."""
    root = tmp_path_factory.mktemp("odd")
    training = []
    for kind in KINDS:
        name = kind.replace(" ", "_")
        values, labels = odd_scan(kind)
        save(root / f"raw/imagesTr/{name}.nii.gz", values)
        save(root / f"raw/labelsTr/{name}.nii.gz", labels)
        training.append({part: f"./{part}sTr/{name}.nii.gz" for part in ("image", "label")})
    modality = dict(enumerate(("FLAIR", "T1w", "t1gd", "T2w")))
    classes = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
    description = {"modality": modality, "labels": dict(enumerate(classes)), "training": training}
    (root / "raw/dataset.json").write_text(json.dumps(description))
    section = split_section(test=["no_tumour"])
    prepare(section, root / "raw", root / "prepare", processes=1)
    return load_prepared(root / "prepare")


@pytest.mark.parametrize("standardize", ["foreground", "slice", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_scan_is_standardised_to_numbers(odd: Prepared, kind: str, standardize: str) -> None:
    case = odd.cases[kind.replace(" ", "_")]
    values_CIJK = read_patch(case, case.box.grown(2), standardize)
    assert np.isfinite(values_CIJK).all()
    assert np.abs(values_CIJK).max() < 1000
    if standardize != "none" and "channel" in kind:
        assert not values_CIJK[2 if "empty" in kind else 1].any()


def test_a_training_on_odd_scans_has_a_loss_at_every_step(odd: Prepared, tmp_path: Path) -> None:
    index = patch(patch_section(per_case=4, background_below=1), odd, (8, 8, 8), tmp_path)
    assert set(index.cases) == {kind.replace(" ", "_") for kind in KINDS} - {"no_tumour"}
    source = Patches(index, odd.cases, augmented(),
                     "foreground", seed=7)  # fmt: skip
    plan = Plan(
        steps=10, steps_per_epoch=10, batch_size=2, learning_rate=1e-2, weight_decay=0,
        warmup_steps=0, average=0, clip=0, optimizer="adamw", keep="last", loss="dice_ce",
        precision="float32",
    )  # fmt: skip
    model = weights.build(Model(name="unet3d", depth=2, base_filters=2), BRATS)
    initialize(model, 7)
    seen: list[float] = []
    fit(
        model,
        source,
        plan,
        lambda model: {SCORE: 0.0},
        lambda step, metrics, snapshot: seen.extend(
            value for key, value in metrics.items() if key.endswith("_loss")
        ),
    )
    assert len(seen) == 20
    assert np.isfinite(seen).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_training_case_without_tumour_has_no_patches_and_says_so(
    odd: Prepared, tmp_path: Path
) -> None:
    healthy = replace(odd, split=replace(odd.split, training=("no_tumour",)))
    with pytest.raises(DataError, match=r"labels of all training cases: wanted some .*, got none"):
        patch(patch_section(), healthy, (8, 8, 8), tmp_path)


def test_a_mask_against_an_odd_truth_has_measures_or_none_and_no_made_up_number(
    tmp_path: Path,
) -> None:
    empty, one = odd_scan("no tumour")[1], odd_scan("one voxel of tumour")[1]
    for name, labels in (("empty", empty), ("one", one)):
        save(tmp_path / f"{name}.nii.gz", labels)
    right = score_files(tmp_path / "one.nii.gz", tmp_path / "one.nii.gz")
    assert right.classes["enhancing"].dice == 1
    assert right.classes["enhancing"].hd95_mm == 0
    assert right.classes["edema"].dice is None
    missed = score_files(tmp_path / "one.nii.gz", tmp_path / "empty.nii.gz")
    assert missed.classes["enhancing"].dice == 0
    nothing = score_files(tmp_path / "empty.nii.gz", tmp_path / "empty.nii.gz")
    assert nothing.mean_regions.dice is None
    assert nothing.classes["enhancing"].specificity == 1
