"""Data sets of any channels and classes, from their files to the mask of a new scan.

Everything is in this process: no Ray, no MLflow (see test_stages.py).
"""

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from gliotrail import params
from gliotrail.dataset.brats import is_brats
from gliotrail.errors import DataError, ParamsError, TrainingError
from gliotrail.imaging.fetch import fetch
from gliotrail.imaging.nifti import read_image, read_labels, write_labels
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared
from gliotrail.runs.journal import RunFolder
from gliotrail.segmentation import weights
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.segment import segment
from gliotrail.training.driver import result, run_training
from gliotrail.training.inputs import Training
from gliotrail.training.preflight import check
from tests.support.data_sets import (
    BASE,
    NAMES,
    Change,
    as_it_is,
    ct,
    flair_alone,
    lesions,
    nnu_net,
    of_every,
    rewritten,
    thick,
)
from tests.support.projects import ROOT, set_params
from tests.support.scans import edit_json


def prepared_from(tmp_path: Path, change: Change, **more: Any) -> params.Params:
    """Fetched, prepared and cut into patches; the params for training on them."""
    raw = tmp_path / "raw"
    shutil.copytree(BASE, raw)
    change(raw)
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    values = {
        "fetch.source": str(raw),
        "prepare.split": {"seed": 7, "test": ["SYN_004"], "validation": ["SYN_003"]},
        "patch.sizes": ["16x16x16"],
        "patch.per_case": 6,
        "pretrain.validation.scans": 1,
        "pretrain.validation.size": "16x16x16",
        "train.model.base_filters": 2,
        "train.init": "scratch",
        "train.rehearsal": 0,
        "train.learning_rate": 3e-3,
        "train.patch_size": "16x16x16",
        "train.epochs": 1,
        "train.epoch_voxels": 2 * 4 * 16**3,
    }
    set_params(path, values | more)
    chosen = params.load(path)
    fetch(chosen.fetch, tmp_path / "fetch")
    prepare(chosen.prepare, tmp_path / "fetch", tmp_path / "prepare", processes=1)
    patch(chosen.patch, load_prepared(tmp_path / "prepare"), (16, 16, 16), tmp_path / "patch")
    return chosen


def training_of(tmp_path: Path, chosen: params.Params) -> Training:
    return Training.of(
        chosen, chosen.train, tmp_path / "prepare", tmp_path / "patch", ROOT / "data/pretrain"
    )


@pytest.mark.parametrize(
    ("change", "spacing", "channels", "names"),
    [
        (as_it_is, "native", 4, {"edema", "WT", "TC", "ET"}),
        (nnu_net, "native", 4, {"edema", "WT", "TC", "ET"}),
        (flair_alone, "native", 1, {"rim", "core"}),
        (thick, "median", 4, {"WT"}),
    ],
)
def test_from_files_to_the_mask_of_a_new_scan(
    tmp_path: Path, change: Change, spacing: str, channels: int, names: set[str]
) -> None:
    chosen = prepared_from(tmp_path, change, **{"prepare.spacing": spacing})
    training, run = training_of(tmp_path, chosen), RunFolder(tmp_path / "run")
    check([training])
    run_training(training, run, World())
    keys = {point.key for point in run.points()}
    assert {f"val/dice_{name}" for name in names} <= keys
    assert "val/dice_mean_regions" in keys
    assert ("val/dice_WT" in keys) == ("WT" in names)
    file = tmp_path / "model.safetensors"
    file.write_bytes(result(training, run)[1])
    model, description = weights.load(file)
    assert description.task == training.task
    assert len(description.channels) == channels
    raw = tmp_path / "fetch"
    scan = read_image(raw / "imagesTr/SYN_004.nii.gz")
    order = list(range(channels)) if change is not nnu_net else [3, 0, 1, 2]
    scan = type(scan)(scan.array[..., order], scan.header)
    done = segment(scan, [(model, description)], threshold=0.0)
    assert done.labels.shape == scan.shape_vox
    task = description.task
    write_labels(tmp_path / "mask.nii.gz", done.labels, scan, task.codes_of_labels)
    again = read_labels(tmp_path / "mask.nii.gz", like=scan, codes=task.labels_of_codes)
    assert np.array_equal(again.array, done.labels)


def test_both_dialects_of_the_same_scans_give_the_same_labels(tmp_path: Path) -> None:
    of = {}
    for change in (as_it_is, nnu_net):
        (tmp_path / change.__name__).mkdir()
        prepared_from(tmp_path / change.__name__, change)
        of[change] = load_prepared(tmp_path / change.__name__ / "prepare")
    one, other = of[as_it_is], of[nnu_net]
    assert is_brats(one.task)
    assert is_brats(other.task)
    for name in NAMES:
        assert np.array_equal(one.cases[name].labels_IJK, other.cases[name].labels_IJK)


def test_ct_is_standardised_by_the_training_cases_hounsfield_numbers(tmp_path: Path) -> None:
    prepared_from(tmp_path, ct)
    prepared = load_prepared(tmp_path / "prepare")
    of = prepared.intensities["CT"]
    assert 700 <= of.low < of.high <= 706
    assert of.low <= of.mean <= of.high
    case = prepared.cases["SYN_004"]
    assert case.air_C.tolist() == [-1024]
    from gliotrail.imaging.prepared import read_patch

    values = read_patch(case, case.box, "foreground")
    inside = case.image_CIJK != 0
    # water is below all bone: it is clipped to the percentile
    assert values[inside].min() == pytest.approx((of.low - of.mean) / of.std, rel=1e-4)
    assert not values[~inside].any()
    assert case.image_CIJK.max() == 706 + 1024


def test_air_that_is_not_0_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared_from(tmp_path, ct)
    told = capsys.readouterr().err
    assert "4 cases' air is not 0, such as SYN_00" in told
    assert "CT -1024" in told


def test_a_scan_without_air_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(root: Path) -> None:
        of_every(root, lambda image: image + np.int16(5), lambda codes: codes)
        rewritten(
            root / "imagesTr/SYN_001.nii.gz",
            lambda image: np.random.default_rng(1).integers(1, 99, image.shape).astype(np.int16),
        )

    prepared_from(tmp_path, full)
    told = capsys.readouterr().err
    assert "1 cases have no air around the body, such as SYN_001" in told


def test_a_resampled_case_has_the_median_spacing_and_keeps_its_volumes(tmp_path: Path) -> None:
    prepared_from(tmp_path, thick, **{"prepare.spacing": "median"})
    cases = load_prepared(tmp_path / "prepare").cases
    for name, case in cases.items():
        assert case.spacing_mm == pytest.approx((1, 1, 2.5))
        raw = np.asarray(nib.load(tmp_path / f"fetch/labelsTr/{name}.nii.gz").dataobj)
        thickness = 2 + NAMES.index(name) % 2
        was_ml, is_ml = (raw > 0).sum() * thickness, sum(case.voxels_per_label[1:]) * 2.5
        assert is_ml == pytest.approx(was_ml, rel=0.15)
        assert case.resampled


def test_other_spacings_without_resampling_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"spacing in RAS.*set prepare.spacing to median"):
        prepared_from(tmp_path, thick)


def test_first_weights_are_kept_where_names_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = prepared_from(
        tmp_path, lesions, **{"train.init": "pretrained", "train.model.base_filters": 32}
    )
    training = training_of(tmp_path, chosen)
    check([training])
    told = capsys.readouterr().err
    assert "classes drawn anew: lesion; classes left out: edema, non_enhancing, enhancing" in told
    from gliotrail.training.driver import first_network

    state, _ = weights.read(training.init)
    ours = first_network(training).state_dict()
    assert np.array_equal(ours["down.0.0.weight"], state["down.0.0.weight"])
    assert ours["head.weight"].shape[0] == 1


def test_first_weights_of_another_kind_of_image_are_refused(tmp_path: Path) -> None:
    def same_name(root: Path) -> None:
        ct(root)
        kinds = {"modality": {"0": "FLAIR"}, "channel_kinds": {"0": "CT"}}
        edit_json(root / "dataset.json", lambda values: values.update(kinds))

    changes = {"train.init": "pretrained", "train.model.base_filters": 32}
    chosen = prepared_from(tmp_path, same_name, **changes)
    with pytest.raises(Exception, match="kind of channel FLAIR: wanted CT, got MR"):
        check([training_of(tmp_path, chosen)])


def test_validation_data_without_any_class_are_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    def unlabelled(root: Path) -> None:
        ct(root)
        rewritten(root / "labelsTr/SYN_003.nii.gz", np.zeros_like)

    training = training_of(tmp_path, prepared_from(tmp_path, unlabelled))
    with pytest.raises(
        TrainingError, match=r"no class in them: wanted .* with bone; choose others"
    ):
        check([training])


def test_synthetic_brain_tumours_are_no_rehearsal_for_anything_else(tmp_path: Path) -> None:
    chosen = prepared_from(tmp_path, lesions, **{"train.rehearsal": 0.25})
    with pytest.raises(ParamsError, match=r"train.rehearsal: wanted 0: synthetic brain tumours"):
        check([training_of(tmp_path, chosen)])
