"""The stage `pretrain`, on Ray's workers, for 20 steps of the whole network."""

from pathlib import Path

import pytest

from gliotrail.distributed.pretrain import pretrain
from gliotrail.errors import ParamsError
from gliotrail.files import sha256
from gliotrail.segmentation.unet import count_parameters
from gliotrail.segmentation.weights import load
from tests.distributed.conftest import Crops

SYNTHETIC = Path("data/pretrain")
SHORT = {
    "pretrain__train__patch_size": "16x16x16",
    "pretrain__train__batch_size": 2,
    "pretrain__train__epoch_voxels": 20 * 2 * 16**3,
    "pretrain__train__epochs": 1,
    "pretrain__validation__scans": 2,
    "pretrain__validation__size": "32x32x24",
}


def weights_after(crops: Crops, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLIOTRAIL_STATE", str(folder / "state"))
    monkeypatch.setenv("GLIOTRAIL_WORKERS", "1")
    pretrain(crops.params(**SHORT), SYNTHETIC, folder / "out")
    return folder / "out/unet3d-833507.safetensors"


@pytest.mark.usefixtures("ray_cluster")
def test_20_steps_twice_give_the_same_bytes_and_a_card(
    crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights_after(crops, tmp_path / "one", monkeypatch)
    again = weights_after(crops, tmp_path / "two", monkeypatch)
    assert first.read_bytes() == again.read_bytes()
    assert count_parameters(load(first)[0]) == (833_507, 0)
    card = first.with_name("CARD.md").read_text()
    for told in (
        sha256(first),
        "20 steps",
        "Seed 7",
        "CC BY-SA 4.0",
        "| WT |",
        "dvc repro --force",
    ):
        assert told in card
    for path in SYNTHETIC.rglob("*.nii.gz"):
        assert sha256(path) in card


def test_values_of_a_sweep_are_refused(crops: Crops, tmp_path: Path) -> None:
    values = crops.params(pretrain__train__patch_size="from_sweep")
    with pytest.raises(ParamsError, match=r"pretrain.train: can't be from_sweep"):
        pretrain(values, SYNTHETIC, tmp_path / "out")
    assert not (tmp_path / "out").exists()
