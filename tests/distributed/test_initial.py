from pathlib import Path

import pytest
import torch

from gliotrail.distributed.driver import check, first_network, result, run_training
from gliotrail.distributed.initial import PRETRAINED, initial_weights
from gliotrail.distributed.training import Training
from gliotrail.errors import ParamsError, WeightsError
from gliotrail.segmentation.loop import World
from gliotrail.tracking.journal import RunFolder
from tests.distributed.conftest import Crops
from tests.support.projects import ROOT


@pytest.fixture(scope="module")
def trained(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the small network, trained for an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    training = crops.training(train__epochs=1)
    run_training(training, RunFolder(folder / "run"), World())
    _, content = result(training, RunFolder(folder / "run"))
    (folder / "weights.safetensors").write_bytes(content)
    return folder / "weights.safetensors"


def losses(training: Training, folder: Path) -> list[float]:
    run = RunFolder(folder)
    run_training(training, run, World())
    return [p.value for p in run.points() if p.key == "train/soft_dice_loss"]


def test_a_training_starts_from_the_weights_it_is_given(
    crops: Crops, trained: Path, tmp_path: Path
) -> None:
    started = crops.training(train__init=str(trained), train__epochs=1)
    model, fresh = first_network(started), first_network(crops.training(train__epochs=1))
    assert not torch.equal(model.head.weight, fresh.head.weight)
    after = losses(started, tmp_path / "started")
    before = losses(crops.training(train__epochs=1), tmp_path / "scratch")
    assert after[0] < before[0]


def test_other_weights_are_another_training(crops: Crops, trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "weights.safetensors"
    copied.write_bytes(trained.read_bytes())
    first = crops.training(train__init=str(copied)).folder()
    run_training(crops.training(train__epochs=2), RunFolder(tmp_path / "run"), World())
    _, content = result(crops.training(train__epochs=2), RunFolder(tmp_path / "run"))
    copied.write_bytes(content)
    assert crops.training(train__init=str(copied)).folder() != first


def test_a_frozen_encoder_stays_as_it_was(crops: Crops, trained: Path, tmp_path: Path) -> None:
    training = crops.training(train__init=str(trained), train__freeze="encoder", train__epochs=1)
    run_training(training, RunFolder(tmp_path), World())
    state, _ = result(training, RunFolder(tmp_path))
    first = first_network(training).state_dict()
    same = {
        name: torch.equal(tensor, first[name]) for name, tensor in state.weights("last").items()
    }
    assert all(same[name] for name in same if name.startswith("down."))
    assert not any(same[name] for name in same if name.endswith(".weight") and "down." not in name)


def test_weights_of_another_network_are_refused_before_anything_starts(
    crops: Crops, trained: Path
) -> None:
    training = crops.training(train__init=str(trained), train__model__base_filters=4)
    own, other = (f"unet3d, depth 2, base_filters {n}" for n in (4, 2))
    wanted = rf"train.init: .*: wanted {own}, got {other}; change"
    with pytest.raises(WeightsError, match=wanted):
        check([training])


def test_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"none.safetensors: train.init: no such file: wanted"):
        initial_weights("none.safetensors")
    assert initial_weights("scratch") is None


@pytest.mark.parametrize("rehearsal", [0, 0.5])
def test_synthetic_scans_are_judged_beside_the_real_ones(
    crops: Crops, rehearsal: float, tmp_path: Path
) -> None:
    training = crops.training(train__rehearsal=rehearsal, train__epochs=1)
    run_training(training, RunFolder(tmp_path), World())
    keys = {point.key for point in RunFolder(tmp_path).points()}
    assert {"val/dice_WT", "val_synthetic/dice_WT", "val_synthetic/soft_dice_loss"} <= keys


def test_the_shipped_weights_are_the_default_network(crops: Crops) -> None:
    assert initial_weights("pretrained") == PRETRAINED
    assert (ROOT / PRETRAINED).is_file()
    training = crops.training(train__init="pretrained", train__model__base_filters=32)
    assert sum(p.numel() for p in first_network(training).parameters()) == 833_507
