import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from gliotrail.errors import DataError, WeightsError
from gliotrail.segmentation.inference import forward
from gliotrail.segmentation.keras import read_keras
from gliotrail.segmentation.unet import UNet3d, initialize
from gliotrail.segmentation.weights import load, to_bytes
from tests.support.brain import CHANNELS, CLASSES

ROOT = Path(__file__).parents[2]
NETWORKS = ("2x32", "2x4", "3x4", "4x2")
LAYOUTS = (".h5", ".weights.h5", ".old.h5")


# files of real Keras


@pytest.fixture(scope="module")
def of_keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    script = Path(__file__).with_name("keras_script.py")
    done = subprocess.run(
        [ROOT / ".venv-bench/bin/python", "-W", "ignore", script, folder, *NETWORKS],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return folder


@pytest.mark.peers
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_an_imported_network_answers_as_it_did_in_keras(of_keras, network, layout, tmp_path):
    read = read_keras(of_keras / f"{network}{layout}")
    (tmp_path / "w.safetensors").write_bytes(to_bytes(read.state, read.description))
    model, description = load(tmp_path / "w.safetensors")
    assert f"{model.depth}x{model.base_filters}" == network
    assert (description.channels, description.classes) == (CHANNELS, CLASSES)
    seen = np.load(of_keras / f"{network}.npz")
    assert np.abs(forward(model, seen["image"]) - seen["probabilities"]).max() < 1e-4
    assert seen["probabilities"].std() > 0.01  # it does answer something


# files made here, so that the rest needs no Keras


def convolutions(depth: int = 2, base: int = 2) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels (k, k, k, in, out) and biases of a network, in its order."""
    model = UNet3d(depth, base)
    initialize(model, seed=7)
    return [
        (np.transpose(m.weight.detach().numpy(), (2, 3, 4, 1, 0)), np.full(len(m.bias), n, "f4"))
        for n, m in enumerate(m for m in model.modules() if isinstance(m, torch.nn.Conv3d))
    ]


def save_old(
    path: Path, tensors: list[Any], names: list[str] | None = None, top: str = "/"
) -> Path:
    """The old layout: lists of names in the model's order, groups in the alphabet's."""
    names = names or [f"conv3d_{n + 9}" for n in range(len(tensors))]
    with h5py.File(path, "w") as file:
        group = file.require_group(top)
        group.attrs["layer_names"] = np.array(["input", *names, "pool"], "S")
        for name in ("input", "pool"):
            group.create_group(name).attrs["weight_names"] = []
        for name, pair in zip(names, tensors, strict=True):
            layer = group.create_group(name)
            parts = [f"{name}/kernel:0", f"{name}/bias:0"][: len(pair)]
            layer.attrs["weight_names"] = np.array(parts, "S")
            for part, values in zip(parts, pair, strict=True):
                layer[part] = values
    return path


def save_new(path: Path, tensors: list[Any], names: list[str] | None = None) -> Path:
    """Keras 3's layout."""
    names = names or ["conv3d", *(f"conv3d_{n}" for n in range(1, len(tensors)))]
    with h5py.File(path, "w") as file:
        file.create_group("layers/max_pooling3d/vars")
        for name, pair in zip(names, tensors, strict=True):
            for n, values in enumerate(pair):
                file[f"layers/{name}/vars/{n}"] = values
    return path


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., None]:
    """Is the file refused, in one line that names it, nothing being written?"""

    def check(path: Path, message: str, **options: Any) -> None:
        with pytest.raises((WeightsError, DataError), match=message) as caught:
            read_keras(path, **options)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    return check


def biases(state: dict[str, torch.Tensor]) -> list[float]:
    return [float(values[0]) for name, values in state.items() if name.endswith("bias")]


def test_layers_come_in_the_listed_order_whatever_their_names(tmp_path):
    tensors = convolutions()
    names = ["zebra", "conv3d_10", "conv3d_2", "a", "conv3d_9", "conv3d_1", "conv3d"]
    for top in ("/", "model_weights"):
        read = read_keras(save_old(tmp_path / "w.h5", tensors, names, top))
        assert biases(read.state) == list(range(7))
        assert [row.layer for row in read.mapped] == names
        assert [row.module for row in read.mapped][::3] == ["down.0.0", "down.1.1", "head"]


def test_keras_3_layers_come_in_the_order_of_their_numbers(tmp_path):
    read = read_keras(save_new(tmp_path / "w.h5", convolutions(depth=4)))
    assert biases(read.state) == list(range(15))
    assert sum(row.parameters for row in read.mapped) == sum(t.numel() for t in read.state.values())


def test_lists_of_names_may_be_cut_in_pieces(tmp_path):
    path = save_old(tmp_path / "w.h5", convolutions())
    with h5py.File(path, "a") as file:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:3], names[3:]
    assert biases(read_keras(path).state) == list(range(7))


def test_a_network_inside_a_model_is_one_layer_of_many_tensors(tmp_path):
    tensors = convolutions()
    with h5py.File(tmp_path / "w.h5", "w") as file:
        parts = [f"c{n}/{part}" for n in range(7) for part in ("kernel", "bias")]
        file.attrs["layer_names"] = np.array(["functional"], "S")
        file.create_group("functional").attrs["weight_names"] = np.array(parts, "S")
        for n, pair in enumerate(tensors):
            for part, values in zip(("kernel", "bias"), pair, strict=True):
                file[f"functional/c{n}/{part}"] = values
    assert biases(read_keras(tmp_path / "w.h5").state) == list(range(7))


def test_other_orders_of_channels_and_classes_are_kept_by_name(tmp_path):
    path = save_old(tmp_path / "w.h5", convolutions())
    read = read_keras(path, ["t1c", "flair", "T2", "T1n"], CLASSES[::-1], "foreground")
    assert read.description.channels == ("T1gd", "FLAIR", "T2w", "T1w")
    assert read.description.classes == ("enhancing", "non_enhancing", "edema")
    assert read.description.standardize == "foreground"


def test_numbers_with_a_gap_or_of_two_classes_tell_no_order(tmp_path, refused):
    tensors = convolutions()
    numbered = ["conv3d", *(f"conv3d_{n}" for n in range(1, 7))]
    for names in (
        [*numbered[1:], "conv3d_7"],
        [*numbered[:6], "conv3d_7"],
        [*numbered[:6], "head"],
    ):
        path = save_new(tmp_path / "w.weights.h5", tensors, names)
        refused(path, "one class of layers, numbered without a gap.*save the whole model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1], "convolutions: wanted 4 times the depth, less one, got 6"),
        (lambda t: [t[1], t[0], *t[2:]], r"conv3d_9, as down\.0\.0 of a U-Net: wanted \(3, 3, "),
        (lambda t: [*t[:4], t[4][::-1], *t[5:]], "conv3d_13: wanted a 3-D convolution's kernel"),
        (lambda t: [*t[:6], t[6][:1]], r"conv3d_15: wanted .* got shapes \[\(1, 1, 1, 4, 3\)\]"),
        (lambda t: [*t[:6], (t[6][0], t[6][1][:2])], r"conv3d_15.* wanted \(3,\), got \(2,\)"),
        (lambda t: [*t[:6], (t[6][0] * np.nan, t[6][1])], "conv3d_15: wanted finite numbers"),
        (lambda t: [*t[:6], (t[6][0].astype(float) + 1e300, t[6][1])], "conv3d_15: .* got NaN or"),
        (lambda t: [*t[:6], (t[6][0].astype(int), t[6][1])], "conv3d_15: wanted real numbers"),
        (lambda t: [], "convolutions: .* got 0"),
        (lambda t: [(k[:1], b) for k, b in t], "conv3d_9, as down.*wanted"),
        (lambda t: t + t[-1:] * 24, "depth.*less than or equal to 6"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused_by_layer(change, message, tmp_path, refused):
    refused(save_old(tmp_path / "w.h5", change(convolutions())), message)


def test_channels_and_classes_must_be_known(tmp_path, refused):
    path = save_old(tmp_path / "w.h5", convolutions())
    refused(path, "channels: wanted FLAIR", channels=CHANNELS[:3])
    refused(path, "channels: wanted FLAIR.*got CT", channels=("CT", *CHANNELS[1:]))
    refused(path, "classes: wanted edema", classes=("edema",))


def test_what_is_no_weights_file_is_refused(tmp_path, refused):
    refused(tmp_path / "none.h5", "no such file")
    (tmp_path / "zip.keras").write_bytes(b"PK\3\4" + bytes(600))
    refused(tmp_path / "zip.keras", "wanted HDF5, got something else; in a .keras archive")
    path = save_old(tmp_path / "w.h5", convolutions())
    path.write_bytes(path.read_bytes()[:3000])
    refused(path, "damaged HDF5 file|format")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    refused(tmp_path / "other.h5", "wanted layer_names, model_weights or layers")


# a stranger's file


def external_link(file: h5py.File, name: str, other: Path) -> None:
    file[name] = h5py.ExternalLink(other, "/conv3d_9/conv3d_9/bias:0")


def soft_link(file: h5py.File, name: str, other: Path) -> None:
    file[name] = h5py.SoftLink("/conv3d_10/conv3d_10/bias:0")


def external_storage(file: h5py.File, name: str, other: Path) -> None:
    file.create_dataset(name, (2,), "f4", external=[(str(other), 0, 8)])


def virtual(file: h5py.File, name: str, other: Path) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource(other, "conv3d_9/conv3d_9/bias:0", (2,))
    file.create_virtual_dataset(name, layout)


def objects(file: h5py.File, name: str, other: Path) -> None:
    file.create_dataset(name, (2,), h5py.string_dtype())


def never_written(file: h5py.File, name: str, other: Path) -> None:
    file.create_dataset(name, (2,), "f4", chunks=(1,))


def group(file: h5py.File, name: str, other: Path) -> None:
    file.create_group(name)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (external_link, "link: wanted everything in one file"),
        (soft_link, "link: wanted everything in one file"),
        (external_storage, "wanted values in this file"),
        (virtual, "wanted values in this file"),
        (objects, "wanted real numbers"),
        (never_written, "none were ever written"),
        (group, "wanted a dataset, got Group"),
    ],
)
def test_nothing_outside_the_file_is_opened(put, message, tmp_path, refused):
    other = save_old(tmp_path / "other.h5", convolutions())
    path = save_old(tmp_path / "w.h5", convolutions())
    with h5py.File(path, "a") as file:
        del file["conv3d_9/conv3d_9/bias:0"]
        put(file, "conv3d_9/conv3d_9/bias:0", other)
    refused(path, message)


def test_a_file_that_says_it_is_huge_takes_no_memory(tmp_path, refused):
    path = save_old(tmp_path / "w.h5", convolutions())
    with h5py.File(path, "a") as file:
        name = "conv3d_15/conv3d_15/kernel:0"
        del file[name]
        huge = file.create_dataset(name, (1, 1, 1, 2**20, 2**20), "f4", chunks=(1, 1, 1, 64, 64))
        huge[0, 0, 0, 0, 0] = 1
    refused(path, "weights: wanted up to 536870912, got 1099")


def test_a_list_of_too_many_names_is_refused(tmp_path, refused):
    path = save_old(tmp_path / "w.h5", convolutions())
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = np.array(["conv3d_9"] * 1001, "S")
    refused(path, "layer_names: wanted up to 1000 names")
