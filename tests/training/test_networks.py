"""Trainings of MONAI's networks, from params to a model that MLflow can load, in this process."""

from pathlib import Path

import pytest
import torch

from gliotrail.errors import ParamsError
from gliotrail.imaging.prepared import load_prepared
from gliotrail.runs.journal import RunFolder
from gliotrail.segmentation.inference import predict_case
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.weights import load
from gliotrail.tracking.registry import save_pyfunc
from gliotrail.training.description import starting_artifacts
from gliotrail.training.driver import first_network, restore, result, run_training
from gliotrail.training.preflight import check
from tests.support.crops import Crops


@pytest.mark.parametrize("name", ["dynunet", "segresnet"])
def test_it_is_trained_resumed_frozen_loaded_and_packed(
    name: str, crops: Crops, tmp_path: Path
) -> None:
    network = {
        "train__model": {
            "name": name, "depth": 3, "base_filters": 8, "deep_supervision": name == "dynunet",
        },
        "train__epochs": 2, "train__epoch_voxels": 2 * 4 * 16**3,
    }  # fmt: skip
    training = crops.training(**network)
    check([training])
    run_training(training, RunFolder(tmp_path / "halves"), World(), until=1)
    run_training(training, RunFolder(tmp_path / "halves"), World())
    run_training(training, RunFolder(tmp_path / "whole"), World())
    whole = result(training, RunFolder(tmp_path / "whole"))[1]
    assert result(training, RunFolder(tmp_path / "halves"))[1] == whole

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(whole)
    model, description = load(weights)
    assert not [key for key in model.state_dict() if "supervision" in key]
    assert description.window == (16, 16, 16)
    case = load_prepared(crops.prepared).cases["BRATS_119"]
    probabilities = predict_case(model, case, description.standardize)
    assert 0 < probabilities.max() < 1
    assert starting_artifacts(training)["network.png"].startswith(b"\x89PNG")

    frozen = crops.training(**network, train__init=str(weights), train__freeze="encoder")
    check([frozen])  # what deep supervision adds is in no weights file
    run_training(frozen, RunFolder(tmp_path / "frozen"), World(), until=1)
    before, state = first_network(frozen).state_dict(), restore(RunFolder(tmp_path / "frozen"))
    assert state is not None
    after, head = state.weights("last"), f"{model.head_name}.weight"
    assert all(torch.equal(after[name], before[name]) for name in model.first)
    assert not torch.equal(after[head], before[head])

    save_pyfunc(weights, tmp_path / "pyfunc", 0.5)
    assert "monai==" in (tmp_path / "pyfunc/requirements.txt").read_text()


def test_patches_of_which_one_voxel_is_left_to_normalise_are_refused(crops: Crops) -> None:
    training = crops.training(
        train__model__name="dynunet", train__model__depth=5, train__model__base_filters=8
    )
    with pytest.raises(ParamsError, match="more than 16 along some axis"):
        check([training])


@pytest.mark.parametrize(
    ("depth", "base", "name", "problem"),
    [
        (2, 8, "dynunet", "train.model.* dynunet wants 3 or more"),
        (3, 12, "segresnet", "train.model.* segresnet wants multiples of 8"),
    ],
)
def test_what_a_network_can_t_be_is_one_line(
    depth: int, base: int, name: str, problem: str, crops: Crops
) -> None:
    with pytest.raises(ParamsError, match=problem):
        crops.params(
            train__model__name=name, train__model__depth=depth, train__model__base_filters=base
        )
