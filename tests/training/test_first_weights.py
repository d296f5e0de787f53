import shutil
from pathlib import Path

import pytest
import torch

from gliotrail.errors import GliotrailError, ParamsError, WeightsError
from gliotrail.imaging.split import read_split
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import Origin
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.weights import load, read, to_bytes
from gliotrail.training.description import describe_training
from gliotrail.training.driver import first_network, result, run_training
from gliotrail.training.first_weights import PRETRAINED, initial_weights
from gliotrail.training.inputs import Training
from gliotrail.training.preflight import check
from tests.support.crops import Crops
from tests.support.projects import ROOT
from tests.support.scans import edit_json


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
    wanted = r"train.init: .*: wanted base_filters 4, got base_filters 2; change"
    with pytest.raises(WeightsError, match=wanted):
        check([training])


@pytest.fixture(scope="module")
def of_thick_slices(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """The crops, as if their slices were 5 mm apart."""
    there = Crops(tmp_path_factory.mktemp("thick"))
    shutil.copytree(crops.root, there.root, dirs_exist_ok=True)
    for path in there.prepared.glob("cases/*/case.json"):
        edit_json(path, lambda values: values.update(spacing_mm=[1.0, 1.0, 5.0]))
    return there


REFUSED = {
    "weights that know other intensities": (
        {"train__init": "TRAINED", "train__standardize": "slice", "train__rehearsal": 0},
        "train.init: .*: wanted standardize slice, got foreground; set train.standardize to f",
    ),
    "synthetic tumours of other intensities": (
        {"train__standardize": "none", "train__rehearsal": 0.25},
        "train.rehearsal: wanted 0: .*standardize foreground, got 0.25 beside scans of .*, none",
    ),
    "a network that sees past the margin": (
        {"train__model__depth": 3},
        "margin_vox: wanted at least 23, which is how far the network sees, got 9",
    ),
    "a budget of no step": (
        {"train__epoch_voxels": 4 * 16**3 // 2 - 1},
        "epoch_voxels: wanted one step's, 4 x 16x16x16, or more, got 8191",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_trained_rightly_is_one_line(
    what: str, crops: Crops, trained: Path
) -> None:
    changes, message = REFUSED[what]
    changes = {key: str(trained) if v == "TRAINED" else v for key, v in changes.items()}
    with pytest.raises(GliotrailError, match=message):
        check([crops.training(**changes)])


def test_voxels_of_another_size_than_the_first_weights_or_synthetic_ones_are_refused(
    of_thick_slices: Crops, trained: Path
) -> None:
    with pytest.raises(GliotrailError, match="of 1 x 1 x 5 mm, got 1 x 1 x 1 mm; resample"):
        check([of_thick_slices.training(train__init=str(trained))])
    with pytest.raises(GliotrailError, match=r"got 0.25 beside scans of 1 x 1 x 5 mm, foreground"):
        check([of_thick_slices.training()])
    training = of_thick_slices.training(train__rehearsal=0, train__epochs=1)
    check([training])
    run = RunFolder(of_thick_slices.root / "run")
    run_training(training, run, World())
    weights = of_thick_slices.root / "model.safetensors"
    weights.write_bytes(result(training, run)[1])
    assert load(weights)[1].spacing_mm == (1, 1, 5)


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


def test_a_weights_file_tells_whom_it_saw_and_judging_by_them_is_told(
    crops: Crops, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = read(trained)[1]
    cases = read_split(crops.prepared).training
    phantoms = crops.training().phantoms
    seen = {*cases, *phantoms.anatomies, *phantoms.shapes}
    assert description.trained_on == tuple(sorted(seen))
    judged = [region.case for region in read_split(crops.prepared).validation]
    of_judged = description.model_copy(update={"trained_on": (judged[0],)})
    known = tmp_path / "known.safetensors"
    known.write_bytes(to_bytes(read(trained)[0], of_judged))
    for file, is_told in ((known, True), (trained, judged[0] in seen)):
        check([crops.training(train__init=str(file), train__epochs=1)])
        told = f"the first weights were trained on {judged[0]}, at least in part"
        assert (told in capsys.readouterr().err) == is_told
    started = crops.training(train__init=str(known), train__epochs=1)
    described = describe_training(started, Origin({}, {}), "tests", "train")
    assert described["split"].endswith(f"the first weights were trained on {judged[0]}")
