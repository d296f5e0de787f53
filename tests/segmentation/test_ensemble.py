from pathlib import Path

import numpy as np
import pytest

from gliotrail.dataset.brats import BRATS
from gliotrail.errors import WeightsError
from gliotrail.params import Model
from gliotrail.segmentation.ensemble import join
from gliotrail.segmentation.inference import forward
from gliotrail.segmentation.postprocess import Postprocess
from gliotrail.segmentation.unet import initialize
from gliotrail.segmentation.weights import Description, build, load, load_into, read, to_bytes

SMALL = Description(
    model=Model(name="unet3d", depth=1, base_filters=2),
    standardize="foreground",
    postprocess=Postprocess(fill_holes=["WT"]),
)


def written(path: Path, seed: int, description: Description = SMALL) -> Path:
    network = build(description.model, BRATS)
    initialize(network, seed)
    path.write_bytes(to_bytes(network.state_dict(), description))
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [written(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2, 3)]


def test_an_ensemble_gives_its_members_mean_probabilities(
    three: list[Path], tmp_path: Path
) -> None:
    joined = tmp_path / "joined.safetensors"
    joined.write_bytes(join(three))
    model, description = load(joined)
    image_CIJK = np.random.default_rng(4).normal(size=(4, 6, 8, 4)).astype(np.float32)
    each = [forward(load(file)[0], image_CIJK) for file in three]
    assert not np.allclose(each[0], each[1], atol=1e-3)
    np.testing.assert_allclose(forward(model, image_CIJK), np.mean(each, axis=0), atol=1e-7)
    assert (description.members, description.postprocess) == (3, None)
    assert description.classes == SMALL.classes


@pytest.mark.parametrize("what", ["one file", "another depth", "an ensemble in it"])
def test_what_can_t_be_joined_is_one_clear_line(
    what: str, three: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    if what == "another depth":
        deeper = SMALL.model_copy(update={"model": Model(name="unet3d", depth=2, base_filters=2)})
        written(other, 1, deeper)
    else:
        other.write_bytes(join(three))
    files = {"one file": three[:1]}.get(what, [three[0], other])
    words = {
        "one file": "an ensemble: wanted two weights files or more, got 1",
        "another depth": f"{other}: model: wanted",
        "an ensemble in it": f"{other}: members: wanted one, got 3",
    }
    with pytest.raises(WeightsError) as told:
        join(files)
    assert words[what] in str(told.value)


def test_a_training_can_t_start_from_an_ensemble(three: list[Path], tmp_path: Path) -> None:
    joined = tmp_path / "joined.safetensors"
    joined.write_bytes(join(three))
    state, description = read(joined)
    with pytest.raises(WeightsError, match="members: wanted the weights of one network, got 3"):
        load_into(build(description.model, BRATS), state, description, BRATS)
