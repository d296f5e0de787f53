import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gliotrail.errors import DataError, ParamsError
from gliotrail.params import Rehearsed
from gliotrail.paths import state_dir
from gliotrail.training.inputs import Training
from tests.support.crops import Crops
from tests.support.scans import ROOT, edit_json


def name(training: Training) -> str:
    """By which a training is known."""
    return training.folder().root.name


def test_a_training_is_kept_under_the_hash_of_its_inputs(crops: Crops) -> None:
    training = crops.training()
    assert training.folder().root == state_dir() / "runs" / name(crops.training())
    assert training.size_vox == (16, 16, 16)
    assert training.learning_rate == 3e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"train__learning_rate": 1e-3},
        {"train__patch_size": "16x16x8"},
        {"train__epochs": 5},
        {"train__seed": 8},
        {"train__augment__flip": 0.25},
        {"train__model__base_filters": 3},
        {"evaluate__threshold": 0.4},
    ],
    ids=str,
)
def test_what_changes_the_result_makes_another_training(
    changes: dict[str, Any], crops: Crops
) -> None:
    assert name(crops.training(**changes)) != name(crops.training())


@pytest.mark.parametrize(
    "changes",
    [{"sweep__epochs": 7}, {"patch__sizes": ["16x16x16"]}, {"fetch__source": "demo"}],
    ids=str,
)
def test_what_other_stages_do_makes_none(changes: dict[str, Any], crops: Crops) -> None:
    assert name(crops.training(**changes)) == name(crops.training())


def test_other_data_other_patches_and_other_code_make_another(crops: Crops, tmp_path: Path) -> None:
    for folder in ("prepare", "patch"):
        shutil.copytree(crops.root / folder, tmp_path / folder)
    there, names = Crops(tmp_path), [name(crops.training())]
    assert name(there.training()) == names[0]  # wherever it lies
    edit_json(there.prepared / "cases/BRATS_009/case.json", lambda c: c.update(image_sha256="0"))
    names.append(name(there.training()))
    index = there.patches / "16x16x16/index.parquet"
    shutil.copyfile(there.patches / "16x16x8/index.parquet", index)
    names.append(name(there.training()))
    training = there.training()
    for of in ("code", "synthetic"):
        names.append(name(replace(training, digests={**training.digests, of: "other"})))
    assert len(set(names)) == 5


def test_what_is_not_prepared_is_told(crops: Crops, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"32x32x32: not prepared; add 32x32x32 to patch\.sizes"):
        crops.training(train__patch_size="32x32x32").folder()
    with pytest.raises(
        DataError, match=r"split\.json: no such file; run `dvc repro prepare` first"
    ):
        Crops(tmp_path).training()


def test_an_index_that_lies_there_from_before_is_not_used(crops: Crops) -> None:
    size = "16x16x8"
    assert (crops.patches / size / "index.parquet").is_file()
    with pytest.raises(ParamsError, match=rf"{size}: not prepared; add {size} to patch\.sizes"):
        crops.training(train__patch_size=size, patch__sizes=["16x16x16"])


@pytest.mark.parametrize("part", ["test", "validation"])
def test_synthetic_tumours_are_made_of_no_patient_that_is_judged(
    crops: Crops, tmp_path: Path, part: str
) -> None:
    """BRATS_275 is BRATS_001 again: a list that names it is refused, a share leaves it out."""
    prepared = tmp_path / "prepare"
    shutil.copytree(crops.prepared, prepared)
    of_part = ["BRATS_275"] if part == "test" else [{"case": "BRATS_275", "box": None}]
    edit_json(prepared / "split.json", lambda split: split.update({part: of_part}))

    def phantoms(rule: object) -> Rehearsed:
        shapes = {"pretrain__phantoms__shapes": ["BRATS_001", "BRATS_002"]}
        values = crops.params(**shapes, **{f"prepare__split__{part}": rule})
        folders = (prepared, crops.patches, ROOT / "data/pretrain")
        return Training.of(values, values.train, *folders).phantoms

    wanted = f"shapes: wanted none of a {part} patient .BRATS_275.*got BRATS_001"
    with pytest.raises(ParamsError, match=wanted):
        phantoms(["BRATS_275"])
    assert phantoms(0.5).shapes == ("BRATS_002",)
