"""Runs as their folders hold them, and a real MLflow on SQLite."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from gliotrail.dataset.brats import BRATS
from gliotrail.params import Model
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.runs.lineage import Origin, describe
from gliotrail.runs.writer import Writer
from gliotrail.segmentation import weights
from gliotrail.segmentation.unet import initialize
from tests.support.forked import Forked
from tests.tracking import tracked_process

DIGESTS = {"data/prepare": "0" * 32 + ".dir", "data/patch/16x16x16": "1" * 32 + ".dir"}


def picture(grey: int) -> bytes:
    """A PNG, wider than high."""
    file = io.BytesIO()
    Image.new("L", (40, 20), grey).save(file, "PNG")
    return file.getvalue()


def begun(root: Path, parent: str | None = None, kind: str = "train") -> RunFolder:
    """A run that has begun."""
    run = RunFolder(root)
    run.begin(
        describe(
            Origin({"env.cpu": "1 x abacus"}, DIGESTS),
            experiment="tests",
            kind=kind,
            name=f"{kind} of tests",
            params={"model": {"name": "unet3d", "depth": 2}, "threshold": 0.4, "size": "16x16x16"},
            inputs=str(root),
            data=list(DIGESTS),
            parent=parent,
        ),
        {"params.yaml": b"train: {}\n"},
    )
    return run


def go_on(run: RunFolder, steps: Sequence[int], made_on: Mapping[str, str] | None = None) -> None:
    """Another attempt of a run, which makes a checkpoint with points and a picture at each step."""
    writer = Writer(run, made_on)
    for step in steps:
        writer.write(step, {"train/soft_dice_loss": 1 / step, "val/dice_WT": step / 1000})
        writer.attach("validation.png", picture(step))
        writer.checkpoint(step, b"state %d" % step)
    writer.close()


def model_file(path: Path, seed: int = 7) -> Path:
    """A weights file of a very small network."""
    model = Model(name="unet3d", depth=2, base_filters=1)
    network = weights.build(model, BRATS)
    initialize(network, seed)
    description = weights.Description(model=model, standardize="foreground")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights.to_bytes(network.state_dict(), description))
    return path


def finished(root: Path, steps: Sequence[int] = (1, 2, 3), score: float = 0.5) -> RunFolder:
    """A run that came to its end, with a model."""
    run = begun(root)
    go_on(run, steps)
    model_file(run.root / MODEL_FILE)
    run.end("FINISHED", "trained to the end", {"score": score, "step": steps[-1]})
    return run


Start = Callable[..., Forked]


def start_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts processes that track a run step by step, without end; at the end they are killed."""
    started: list[Forked] = []

    def process(root: Path, pause_s: float = 0.05) -> Forked:
        output = tmp_path / f"{len(started)}.txt"
        with monkeypatch.context() as patched:
            patched.setenv("GLIOTRAIL_STATE", str(root.parent.parent))
            started.append(Forked(output, tracked_process.main, root, pause_s, 100_000))
        return started[-1]

    yield process
    for each in started:
        each.kill()
