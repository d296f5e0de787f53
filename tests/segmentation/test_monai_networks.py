"""MONAI's networks do all that the 3-D U-Net does; what differs is how a scan is predicted."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.errors import ParamsError
from gliotrail.imaging.prepared import case_of_array
from gliotrail.params import Model
from gliotrail.segmentation.inference import forward, predict_case
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.unet import count_parameters, initialize
from gliotrail.segmentation.weights import Description, build, load, reordered, to_bytes
from tests.support.brain import CHANNELS, CLASSES

KINDS: Mapping[str, Mapping[str, Any]] = {
    "dynunet": {},
    "segresnet": {},
    "dynunet, residual": {"residual": True},
    "dynunet, residual, at half the resolution": {"residual": True, "space_to_depth": 2},
    "segresnet, at half the resolution": {"space_to_depth": 2},
}
pytestmark = pytest.mark.parametrize("name", KINDS)
WINDOW = (16, 16, 8)


def description(name: str, task: Task = BRATS) -> Description:
    model = Model(name=name.split(",", maxsplit=1)[0], depth=3, base_filters=8, **KINDS[name])
    return Description(model=model, window=WINDOW, standardize="foreground", task=task)


def network(name: str, seed: int = 1) -> Network:
    model = description(name).build()
    initialize(model, seed)
    return model


def image(i: int = 16, j: int = 16, k: int = 8) -> torch.Tensor:
    return torch.randn(1, 4, i, j, k, generator=torch.Generator().manual_seed(2))


def test_it_gives_a_logit_a_class_and_refuses_what_it_can_t_halve(name: str) -> None:
    assert network(name)(image()).shape == (1, 3, 16, 16, 8)
    step = 4 * KINDS[name].get("space_to_depth", 1)
    with pytest.raises(ParamsError, match=f"sides that are multiples of {step}"):
        network(name)(image(18))


def test_a_voxel_keeps_its_place_at_half_the_resolution(name: str) -> None:
    model = network(name)
    n = getattr(model, "cube_vox", 1)
    object.__setattr__(model, "net", lambda cubes: cubes[:, : 3 * n**3])  # the channels again
    torch.testing.assert_close(model(image()), image()[:, :3], rtol=0, atol=0)


def test_its_first_weights_follow_from_the_seed(name: str) -> None:
    once, again, other = (network(name, seed)(image()) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.allclose(once, other)


def test_a_weights_file_holds_each_weight_once_and_gives_the_network_again(
    name: str, tmp_path: Path
) -> None:
    model, path = network(name), tmp_path / "model.safetensors"
    path.write_bytes(to_bytes(model.state_dict(), description(name)))
    with safe_open(path, framework="pt") as file:
        stored = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    assert stored == sum(count_parameters(model))
    again, told = load(path)
    assert (told, again.window_vox) == (description(name), WINDOW)
    assert torch.equal(again(image()), model(image()))


def test_permuted_names_with_permuted_weights_give_the_same_logits(
    name: str, tmp_path: Path
) -> None:
    model, path = network(name), tmp_path / "model.safetensors"
    with torch.no_grad():
        bias = model.get_submodule(model.head_name).bias
        bias.copy_(torch.linspace(0.1, 0.9, len(bias)))
    channels, classes, state = [2, 0, 3, 1], [2, 0, 1], model.state_dict()
    n = model.voxels_each
    for first in model.first:
        state[first] = torch.cat([state[first][:, c * n : c * n + n] for c in channels], 1)
    for part in (f"{model.head_name}.weight", f"{model.head_name}.bias"):
        state[part] = torch.cat([state[part][c * n : c * n + n] for c in classes])
    names = [CHANNELS[n] for n in channels], [CLASSES[n] for n in classes]
    permuted = description(name, reordered(BRATS, *names))
    path.write_bytes(to_bytes(state, permuted))
    torch.testing.assert_close(load(path)[0](image()), model(image()), rtol=0, atol=0)


def test_the_encoder_is_a_part_of_it_without_the_head(name: str) -> None:
    model = network(name)
    for part in model.encoder:
        part.requires_grad_(False)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen >= set(model.first)
    assert f"{model.head_name}.weight" not in frozen


def test_a_scan_as_large_as_a_window_is_one_pass(name: str) -> None:
    model = network(name)
    one_pass = model(image()).sigmoid()[0].detach().numpy()
    np.testing.assert_allclose(forward(model, image()[0].numpy()), one_pass, atol=1e-6)


def test_windows_overlap_without_seams_and_give_nothing_outside_the_brain(name: str) -> None:
    model = network(name)
    values = np.zeros((4, 40, 24, 20), np.float32)
    generator = np.random.default_rng(3)
    values[:, 5:38, 2:23, 1:18] = generator.normal(100, 10, (4, 33, 21, 17))
    case = case_of_array(values, np.eye(4), "a scan", BRATS.channels)
    probabilities = predict_case(model, case, "foreground")
    assert probabilities.shape == (3, 40, 24, 20)
    outside = np.ones(values.shape[1:], bool)
    outside[case.box.slices] = False
    assert not probabilities[:, outside].any()
    inside = probabilities[:, *case.box.slices]
    assert 0 < inside.min() < inside.max() < 1
    with torch.no_grad():  # what no window changes, merging them doesn't either
        model.get_submodule(model.head_name).weight.zero_()
        model.get_submodule(model.head_name).bias.fill_(0.5)
    same = predict_case(model, case, "foreground")[:, *case.box.slices]
    np.testing.assert_allclose(same, 1 / (1 + np.exp(-0.5)), atol=1e-6)


def test_without_monai_it_is_told_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets.dynunet", None)
    with pytest.raises(ParamsError, match=r"model.name: \w+: wanted MONAI, got none; `pip"):
        build(description(name).model, BRATS)
