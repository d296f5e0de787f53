"""Weights, models and checkpoints from strangers: never run, and refused with a reason."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from mlflow import MlflowClient
from safetensors.torch import save

from gliotrail.errors import GliotrailError, ParamsError, TrackingError, WeightsError
from gliotrail.files import sha256
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.writer import Writer
from gliotrail.segmentation import weights
from gliotrail.tracking.once import SHA256_TAG
from gliotrail.tracking.registry import MODEL, fetch_weights
from gliotrail.tracking.restore import restore as restore_outputs
from gliotrail.training.driver import restore
from gliotrail.training.first_weights import initial_weights
from gliotrail.training.state_file import from_bytes
from tests.hostile.conftest import SEED, Tally, fuzz
from tests.segmentation.test_weights import KEY, write
from tests.support.environment import in_state
from tests.support.limits import Canary


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("good") / "model.safetensors").read_bytes()


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The same tensors below another header."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


FIRST = "down.0.0.bias"
LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a shape of exabytes": lambda h: h[FIRST].update(shape=[2**62, 4]),
    "a shape below 0": lambda h: h[FIRST].update(shape=[-1]),
    "beyond the end": lambda h: h[FIRST].update(data_offsets=[0, 2**62]),
    "over each other": lambda h: h[FIRST].update(data_offsets=[4, 20]),
    "an unknown type": lambda h: h[FIRST].update(dtype="evil"),
    "no text": lambda h: h["__metadata__"].update({KEY: 5}),
    "brackets": lambda h: h["__metadata__"].update({KEY: "[" * 100_000}),
    "a description that is long": lambda h: h["__metadata__"].update({KEY: "x" * 10**6}),
    "a number of 400 digits": lambda h: h["__metadata__"].update(
        {KEY: json.dumps({"model": {"name": "unet3d", "depth": 2, "base_filters": 10**400}})}
    ),
}


@pytest.mark.parametrize("what", [*LIES, "a header of exabytes", "a header of 80 MB"])
def test_a_header_that_lies_is_refused(
    what: str, good: bytes, tmp_path: Path, tally: Tally
) -> None:
    path = tmp_path / "model.safetensors"
    if what in LIES:
        path.write_bytes(with_header(good, LIES[what]))
    elif what == "a header of 80 MB":
        path.write_bytes(struct.pack("<Q", 80_000_000) + b'{"a":"' + b"x" * 79_999_992 + b'"}')
    else:
        path.write_bytes(struct.pack("<Q", 2**63) + good[8:])
    told = tally.refusal(weights.load, path)
    assert told is not None and told.startswith(f"{path}: ") and len(told) < 1000


def attack(spots: list[tuple[float, int]], good: bytes, place: Path, tally: Tally) -> None:
    content, header = bytearray(good), 8 + struct.unpack("<Q", good[:8])[0]
    for share, bit in spots:
        content[int(share * (header - 1))] ^= 1 << bit
    path = place / "model.safetensors"
    path.write_bytes(content)
    if tally.refusal(weights.load, path) is None:
        tensors, said = weights.load(path)
        tally.check(said.build().state_dict().keys() == tensors.state_dict().keys())


SPOTS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3)


@fuzz(30, spots=SPOTS)
def test_turned_bits_in_a_header_are_refused_or_harmless(
    spots: list[tuple[float, int]], good: bytes, place: Path, tally: Tally
) -> None:
    attack(spots, good, place, tally)


@pytest.mark.long
@fuzz(3000, use=SEED, spots=SPOTS)
def test_thousands_of_turned_bits_are(
    spots: list[tuple[float, int]], good: bytes, place: Path, tally: Tally
) -> None:
    attack(spots, good, place, tally)


# canaries


def pickled(canary: Path) -> bytes:
    return pickle.dumps({"step": Canary(canary)})


def torched(canary: Path) -> bytes:
    path = canary.with_name("made.pt")
    torch.save({"step": Canary(canary)}, path)
    return path.read_bytes()


@pytest.fixture(params=[pickled, torched])
def trap(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What touches `tmp_path / "canary"` when it is unpickled; it is seen that it would."""
    content = request.param(tmp_path / "canary")
    (tmp_path / "trap").write_bytes(content)
    if request.param is pickled:
        pickle.loads(content)
    else:
        torch.load(tmp_path / "trap", weights_only=False)
    (tmp_path / "canary").unlink()
    yield content
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.safetensors", "model.h5", "x"])
def test_a_pickle_never_runs_as_first_weights(
    name: str, trap: bytes, tmp_path: Path, tally: Tally
) -> None:
    path = tmp_path / name
    path.write_bytes(trap)

    def load() -> None:
        found = initial_weights(str(path))
        assert found is not None
        weights.load(found)

    assert tally.refusal(load) is not None
    with pytest.raises((WeightsError, ParamsError)):
        load()


def test_a_pickle_never_runs_as_a_checkpoint(trap: bytes, tmp_path: Path, tally: Tally) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin({})
    writer = Writer(run)
    writer.write(1, {"train/soft_dice_loss": 1.0})
    made = writer.checkpoint(1, trap)
    writer.close()
    assert "no checkpoint" in str(tally.refusal(restore, run))
    (made.folder / "state.safetensors").write_bytes(trap[:-1])
    assert "sha256" in str(tally.refusal(restore, run))


@pytest.mark.parametrize(
    "content",
    [b"", save({}), save({"step": torch.ones(3)}), save({"step": torch.ones(1)})],
    ids=["nothing", "no tensors", "three steps", "no score"],
)
def test_a_checkpoint_that_is_none_is_refused(content: bytes, tally: Tally) -> None:
    assert "no checkpoint" in str(tally.refusal(from_bytes, content))


@pytest.mark.parametrize("as_what", ["python_model.pkl", "model.safetensors"])
def test_a_pickle_never_runs_inside_a_registered_model(
    as_what: str, trap: bytes, server: MlflowClient, tmp_path: Path, tally: Tally
) -> None:
    folder = tmp_path / "model"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / as_what).write_bytes(trap)
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n"
        f"    python_model: artifacts/{as_what}\n"
    )
    digest = sha256(folder / "artifacts" / as_what)
    server.create_registered_model(MODEL)
    server.create_model_version(MODEL, folder.as_uri(), tags={SHA256_TAG: digest})
    server.set_registered_model_alias(MODEL, "champion", "1")

    def load() -> None:
        weights.load(fetch_weights(f"models:/{MODEL}@champion", tmp_path / "fetched"))

    (tmp_path / "fetched").mkdir()
    with pytest.raises(GliotrailError, match=r"sha256|not a whole safetensors file"):
        load()
    assert list((tmp_path / "fetched").rglob(as_what))  # it was there to be run


def test_outputs_that_name_a_folder_elsewhere_make_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(tmp_path / "state", monkeypatch)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/work").write_text("mine")
    outputs = tmp_path / "train"
    outputs.mkdir()
    (outputs / "journal.jsonl").touch()
    says = {"tags": {"gliotrail.inputs": "../../precious"}, "ended": {"summary": {}}}
    (outputs / "run.json").write_text(json.dumps(says))
    with pytest.raises(TrackingError, match="no record of a run"):
        restore_outputs(outputs)
    assert (tmp_path / "precious/work").read_text() == "mine"
