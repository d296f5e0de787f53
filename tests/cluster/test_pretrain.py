"""The stage `pretrain`: 20 steps of the whole network, twice; and the stage itself, smaller."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gliotrail.cluster.pretrain import pretrain
from gliotrail.errors import ParamsError
from gliotrail.files import sha256
from gliotrail.runs.journal import RunFolder
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.unet import count_parameters
from gliotrail.segmentation.weights import load
from gliotrail.training.driver import result, run_training
from gliotrail.training.inputs import Training
from tests.support.crops import Crops

SYNTHETIC = Path("data/pretrain")
SHORT = {
    "pretrain__train__patch_size": "8x8x8",
    "pretrain__train__batch_size": 1,
    "pretrain__train__epochs": 1,
    "pretrain__validation__size": "32x32x24",
}


def test_20_steps_twice_give_the_same_bytes(crops: Crops, tmp_path: Path) -> None:
    params = crops.params(**SHORT, pretrain__train__epoch_voxels=20 * 8**3)
    training = Training.of(params, params.pretrain.train, prepared=None)
    content = []
    for name in ("one", "two"):
        run = RunFolder(tmp_path / name)
        run_training(training, run, World())
        state, weights = result(training, run)
        assert state.step == 20
        content.append(weights)
    assert content[0] == content[1]
    (tmp_path / "weights.safetensors").write_bytes(content[0])
    assert count_parameters(load(tmp_path / "weights.safetensors")[0]) == (833_507, 0)


@pytest.mark.usefixtures("in_this_process")
def test_the_stage_gives_weights_with_a_card(
    crops: Crops, new_state: Callable[[], Path], tmp_path: Path
) -> None:
    new_state()
    small = {"pretrain__train__model__base_filters": 2, "pretrain__train__epoch_voxels": 8 * 8**3}
    pretrain(crops.params(**SHORT, **small), SYNTHETIC, tmp_path / "out")
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    assert count_parameters(load(weights)[0])[0] == int(weights.stem.rpartition("-")[2])
    card = (tmp_path / "out/CARD.md").read_text()
    for told in (sha256(weights), "8 steps", "Seed 7", "CC BY-SA 4.0", "dvc unfreeze pretrain"):
        assert told in card
    for path in (SYNTHETIC / "open_ms_patient07").glob("*.nii.gz"):
        assert sha256(path) in card


def test_values_of_a_sweep_are_refused(crops: Crops, tmp_path: Path) -> None:
    values = crops.params(pretrain__train__patch_size="from_sweep")
    with pytest.raises(ParamsError, match=r"pretrain.train: can't be from_sweep"):
        pretrain(values, SYNTHETIC, tmp_path / "out")
    assert not (tmp_path / "out").exists()
