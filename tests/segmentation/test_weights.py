import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from gliotrail.dataset.brats import BRATS
from gliotrail.errors import WeightsError
from gliotrail.params import Model
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.unet import UNet3d, initialize
from gliotrail.segmentation.weights import (
    Description,
    build,
    load,
    load_into,
    read,
    reordered,
    to_bytes,
)
from tests.support.brain import CHANNELS, CLASSES
from tests.support.gloo import Workers
from tests.support.limits import Canary, at_most_more
from tests.support.projects import ROOT

KEY = "gliotrail-weights-1"
DESCRIPTION = Description(
    model=Model(name="unet3d", depth=2, base_filters=4), standardize="foreground"
)
FIRST, HEAD = "down.0.0.weight", "head.weight"


def network(seed: int = 1) -> UNet3d:
    model = build(DESCRIPTION.model, BRATS)
    initialize(model, seed)
    return model


def image(channels: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, channels, 4, 6, 8, generator=generator)


def write(
    path: Path, changes: Mapping[str, object] | None = None, **tensors: torch.Tensor | None
) -> Path:
    """A weights file with some tensors replaced (None: left out) and another description."""
    state = {**network().state_dict(), **{n.replace("__", "."): t for n, t in tensors.items()}}
    values = DESCRIPTION.model_dump(mode="json") | (dict(changes) if changes else {})
    if values.keys() & {"channels", "classes"}:  # as older files had it
        del values["task"], values["intensities"]
    text = json.dumps(values)
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    path.write_bytes(save(kept, metadata={KEY: text}))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_what_is_written_is_read(path):
    model = network()
    description = DESCRIPTION.model_copy(update={"standardize": "slice"})
    path.write_bytes(to_bytes(model.state_dict(), description))
    again, told = load(path)
    assert told == description
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert again.head.weight.requires_grad
    assert torch.equal(again(image()), model(image()))


def test_double_precision_weights_are_rounded_to_the_network_s(path):
    model = network().double()
    path.write_bytes(to_bytes(model.state_dict(), DESCRIPTION))
    again, _ = load(path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.head.weight, model.head.weight.float())


def bytes_there(world: World) -> tuple[int, bytes]:
    return os.getpid(), to_bytes(network().state_dict(), DESCRIPTION)


def test_equal_weights_are_equal_bytes_in_every_process(gloo: Workers):
    told = dict(gloo(2, bytes_there))
    assert len(told.keys() | {os.getpid()}) == 3
    assert set(told.values()) == {to_bytes(network().state_dict(), DESCRIPTION)}


def test_neither_the_order_nor_the_memory_of_tensors_is_in_the_bytes():
    wanted = to_bytes(network().state_dict(), DESCRIPTION)
    last = network().to(memory_format=torch.channels_last_3d).state_dict()
    assert not last[FIRST].is_contiguous()
    assert to_bytes(dict(reversed(last.items())), DESCRIPTION) == wanted
    assert to_bytes(network(seed=2).state_dict(), DESCRIPTION) != wanted


def test_permuted_channels_with_permuted_names_give_the_same_logits(path):
    model, order = network(), [2, 0, 3, 1]
    permuted = {"channels": [CHANNELS[n] for n in order]}
    write(path, permuted, down__0__0__weight=model.state_dict()[FIRST][:, order])
    torch.testing.assert_close(load(path)[0](image()), model(image()), rtol=0, atol=0)
    write(path, down__0__0__weight=model.state_dict()[FIRST][:, order])
    assert not torch.allclose(load(path)[0](image()), model(image()), rtol=0, atol=1e-2)


def test_permuted_classes_with_permuted_names_give_the_same_logits(path):
    model, order = network(), [2, 0, 1]
    bias = torch.tensor([0.1, 0.2, 0.3])
    with torch.no_grad():
        model.head.bias.copy_(bias)
    permuted = {"classes": [CLASSES[n] for n in order]}
    weight = model.state_dict()[HEAD][order]
    write(path, permuted, head__weight=weight, head__bias=bias[order])
    torch.testing.assert_close(load(path)[0](image()), model(image()), rtol=0, atol=0)


def test_a_network_can_ask_for_its_own_order_of_channels():
    model, order = network(), [3, 1, 0, 2]
    fed = build(DESCRIPTION.model, BRATS)
    task = reordered(BRATS, [CHANNELS[n] for n in order], CLASSES)
    assert load_into(fed, model.state_dict(), DESCRIPTION, task) == []
    torch.testing.assert_close(fed(image()[:, order]), model(image()))


def truncated(at: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(write(path).read_bytes()[:at])


def described(**changes: object) -> Callable[[Path], object]:
    return lambda path: write(path, changes)


def with_tensor(name: str, tensor: torch.Tensor | None) -> Callable[[Path], object]:
    return lambda path: write(path, **{name.replace(".", "__"): tensor})


def with_metadata(**metadata: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(save(network().state_dict(), metadata=metadata))


MODEL = DESCRIPTION.model.model_dump()
SHAPE = (4, 4, 3, 3, 3)
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "no such file"),
    "a folder": (Path.mkdir, "no such file"),
    "empty": (Path.touch, "not a whole safetensors file"),
    "cut in the header": (truncated(1000), "not a whole safetensors file"),
    "cut in the tensors": (truncated(-1), "not a whole safetensors file"),
    "text": (lambda path: path.write_text("{}" * 100), "not a whole safetensors file"),
    "no metadata": (with_metadata(), "not Gliotrail's weights: wanted metadata"),
    "other metadata": (with_metadata(format="pt"), "not Gliotrail's weights: wanted metadata"),
    "no JSON": (with_metadata(**{KEY: "{"}), "description: got Invalid JSON"),
    "no model": (with_metadata(**{KEY: "{}"}), "description.model: got Field required"),
    "a later field": (described(rotation=1), "description.rotation: got Extra inputs"),
    "too deep": (described(model=MODEL | {"depth": 60}), "description.model.depth: got"),
    "58 GB": (
        described(model=MODEL | {"depth": 6, "base_filters": 512}),
        "down.0.0.bias: wanted (512,), got (4,)",
    ),
    "another depth": (
        described(model=MODEL | {"depth": 3}), "down.2.0.bias: wanted (16,), got none"),
    "other channels": (
        described(channels=["FLAIR", "T1w", "T1gd", "PD"]),
        "channels: wanted FLAIR, T1w, T1gd, T2w, got FLAIR, T1w, T1gd, PD"),
    "a channel missing": (described(channels=CHANNELS[:3]), "channels: wanted FLAIR, T1w, T1gd"),
    "a class twice": (
        described(classes=["edema", "edema", "enhancing"]), "classes: wanted edema, non_enhancing"),
    "NaN": (
        with_tensor(FIRST, torch.full(SHAPE, float("nan"))),
        f"{FIRST}: wanted finite numbers, got NaN or Inf"),
    "beyond float32": (
        with_tensor(FIRST, torch.full(SHAPE, 1e300, dtype=torch.float64)),
        f"{FIRST}: wanted finite numbers, got NaN or Inf"),
    "complex numbers": (
        with_tensor(FIRST, torch.zeros(SHAPE, dtype=torch.complex64)),
        f"{FIRST}: wanted floating-point numbers, got torch.complex64"),
    "another shape": (
        with_tensor(FIRST, torch.zeros(2, 3)), f"{FIRST}: wanted {SHAPE}, got (2, 3)"),
    "a tensor missing": (with_tensor("head.bias", None), "head.bias: wanted (3,), got none"),
    "a tensor too many": (
        with_tensor("more.bias", torch.zeros(3)), "more.bias: wanted none, got (3,)"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_can_t_be_used_is_one_clear_line(what, path):
    spoil, line = BAD[what]
    spoil(path)
    with at_most_more(2**31), pytest.raises(WeightsError) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: {line}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_under_the_name_of_safetensors_never_runs(dump, path, tmp_path):
    canary = tmp_path / "canary"
    with path.open("wb") as file:
        dump({FIRST: Canary(canary)}, file)
    for reader in (read, load):
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            reader(path)
    assert not canary.exists()
    with path.open("rb") as file:
        torch.load(file, weights_only=False) if dump is torch.save else pickle.load(file)
    assert canary.exists()


def test_weights_of_before_tell_the_foreground_as_brain() -> None:
    path = ROOT / "results/pretrain/unet3d-833507.safetensors"
    assert b'"standardize":"brain"' in path.read_bytes()[:2000].replace(b"\\", b"")
    assert read(path)[1].standardize == "foreground"
    values = {**DESCRIPTION.model_dump(), "standardize": "brains"}
    with pytest.raises(ValueError, match="standardize"):
        Description.model_validate(values)
