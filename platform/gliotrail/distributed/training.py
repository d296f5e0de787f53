"""One training, wherever it runs: the function that `train`'s workers and a sweep's trials call.

A training is known by its inputs: params, data, patch index, code. Its folder (see
`tracking.journal`) is named by their hash, so that an interrupted one is found again and goes on,
a finished one is not run twice, and a changed one starts afresh.
"""

import getpass
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from gliotrail.errors import ParamsError
from gliotrail.files import sha256, write_durably
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.labels import CHANNELS, CLASSES, Labels
from gliotrail.imaging.patch import read_index
from gliotrail.imaging.prepared import Prepared, load_prepared, read_labels_patch, read_patch
from gliotrail.imaging.split import Region
from gliotrail.params import Size, Train, format_size
from gliotrail.places import state_dir
from gliotrail.report.figures import figure_png
from gliotrail.report.network import draw_network, layer_rows, parameter_table
from gliotrail.report.overlays import draw_prediction, pick_slices
from gliotrail.segmentation.loop import SCORE, Plan, State, World, fit
from gliotrail.segmentation.sampling import Patches
from gliotrail.segmentation.unet import UNet3d, check_size, count_parameters, initialize
from gliotrail.segmentation.validation import validate
from gliotrail.segmentation.weights import build
from gliotrail.tracking.journal import RunFolder, Writer, read_verified
from gliotrail.tracking.lineage import (
    code_digest,
    digest_of,
    dvc_digests,
    environment,
    git_commit,
)

CHECKPOINT_EVERY_S: Final = 60.0
_STATE: Final = "state.safetensors"

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Is told, on every worker, the step and the numbers of each epoch's end."""


@dataclass(frozen=True)
class Training:
    """A training's inputs, every choice made. Cheap to send to a worker."""

    section: Train
    learning_rate: float
    size_vox: Size
    epochs: int
    seed: int
    threshold: float
    prepared: Path
    patches: Path

    def inputs(self) -> dict[str, Any]:
        """All that the result depends on, as plain values."""
        section = self.section.model_dump(mode="json")
        chosen = {
            "learning_rate": self.learning_rate,
            "patch_size": format_size(self.size_vox),
            "epochs": self.epochs,
            "seed": self.seed,
        }
        return {
            "train": section | chosen,
            "threshold": self.threshold,
            "data": prepared_digest(self.prepared),
            "patches": sha256(self.index_path),
            "code": code_digest(),
        }

    def folder(self) -> RunFolder:
        """Where this training is kept, now and when it goes on."""
        return RunFolder(state_dir() / "runs" / digest_of(self.inputs()))

    @property
    def index_path(self) -> Path:
        """The patch index of this training's size."""
        return self.patches / format_size(self.size_vox) / "index.parquet"

    def plan(self) -> Plan:
        """Steps and rates for the loop."""
        return Plan.of(
            epochs=self.epochs,
            epoch_voxels=self.section.epoch_voxels,
            size_vox=self.size_vox,
            batch_size=self.section.batch_size,
            warmup=self.section.warmup,
            learning_rate=self.learning_rate,
            weight_decay=self.section.weight_decay,
            average=self.section.average,
            keep=self.section.keep,
            loss=self.section.loss,
            precision=self.section.precision,
        )

    def check(self) -> None:
        """Refuse what can't be trained, before anything starts.

        Raises:
            ParamsError: a size that isn't prepared, or that the network can't halve.
        """
        check_size(self.size_vox, self.section.model.depth)
        if not self.index_path.is_file():
            size = format_size(self.size_vox)
            raise ParamsError(
                f"patch size {size}: not prepared",
                where=self.index_path,
                do=f"add {size} to patch.sizes and run `dvc repro patch`",
            )


def prepared_digest(folder: Path) -> str:
    """One hash of the prepared data: the split, and each case's raw files, box and statistics."""
    paths = [folder / "split.json", *sorted(folder.glob("cases/*/case.json"))]
    return digest_of([[path.relative_to(folder).as_posix(), sha256(path)] for path in paths])


def run_training(
    training: Training, run: RunFolder, world: World, on_epoch: OnEpoch | None = None
) -> State:
    """Train to the plan's end, from the last final checkpoint if there is one.

    Every worker calls it; worker 0 writes the run's folder.

    Raises:
        TrainingError, DataError, ParamsError: as the loop, the data and the params have it.
    """
    prepared = load_prepared(training.prepared)
    index = read_index(training.index_path)
    section = training.section
    patches = Patches(index, prepared.cases, section.augment, section.standardize, training.seed)
    model = build(section.model)
    initialize(model, training.seed)
    state = restore(run)
    writer = Writer(run) if world.rank == 0 else None
    shown: dict[Region, Labels] = {}
    last_checkpoint_s = time.monotonic()

    def judge(network: torch.nn.Module) -> Mapping[str, float]:
        assert isinstance(network, UNet3d)
        return validate(
            network,
            prepared.cases,
            prepared.split.validation,
            section.standardize,
            training.threshold,
            world,
            watch=shown.__setitem__,
        )

    def report(step: int, metrics: Mapping[str, float], snapshot: Callable[[], State]) -> None:
        nonlocal last_checkpoint_s
        epoch_ends = SCORE in metrics
        if writer is not None:
            writer.write(step, metrics)
            if epoch_ends or time.monotonic() - last_checkpoint_s > CHECKPOINT_EVERY_S:
                if epoch_ends:
                    writer.attach("validation.png", _draw(prepared, shown, training, step))
                writer.checkpoint(step, to_bytes(snapshot()))
                last_checkpoint_s = time.monotonic()
        shown.clear()
        if epoch_ends and on_epoch is not None:
            on_epoch(step, metrics)

    try:
        return fit(model, patches, training.plan(), judge, report, world, state)
    finally:
        if writer is not None:
            writer.close()


def _draw(
    prepared: Prepared, shown: Mapping[Region, Labels], training: Training, step: int
) -> bytes:
    """The first validation region this worker predicted: truth, prediction, and where they part."""
    region, predicted_IJK = next(iter(shown.items()))
    case = prepared.cases[region.case]
    box = region.box or Box((0, 0, 0), case.ras_shape_vox)
    labels_IJK = read_labels_patch(case, box)
    return figure_png(
        draw_prediction(
            read_patch(case, box, "brain"),
            labels_IJK,
            predicted_IJK,
            pick_slices(labels_IJK, 4),
            case.spacing_mm,
            f"{case.name}, validation, step {step} of {training.plan().steps}",
        )
    )


def to_bytes(state: State) -> bytes:
    """A state as safetensors; its few numbers go in as tensors of one element."""
    numbers = {
        "step": torch.tensor(state.step, dtype=torch.int64),
        "kept_score": torch.tensor(state.kept_score, dtype=torch.float64),
        "kept_step": torch.tensor(state.kept_step, dtype=torch.int64),
    }
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    return save_tensors(tensors | numbers)


def from_bytes(content: bytes) -> State:
    """The inverse of `to_bytes`. Nothing is unpickled."""
    tensors = load_tensors(content)
    step = int(tensors.pop("step").item())
    kept_score = float(tensors.pop("kept_score").item())
    kept_step = int(tensors.pop("kept_step").item())
    return State(step, tensors, kept_score, kept_step)


def restore(run: RunFolder) -> State | None:
    """The state of the last final checkpoint, its checksum compared; None before the first."""
    history = run.history()
    return from_bytes(read_verified(history[-1], _STATE)) if history else None


def describe(
    training: Training, experiment: str, kind: str, parent: str | None = None
) -> dict[str, Any]:
    """What a run is, for its folder and for MLflow; no word of where it runs but in tags."""
    size, inputs = format_size(training.size_vox), training.inputs()
    model = build(training.section.model)
    trainable, other = count_parameters(model)
    digests = dvc_digests()
    paths = ("data/fetch", "data/prepare", f"data/patch/{size}")
    return {
        "id": uuid.uuid4().hex,
        "experiment": experiment,
        "name": f"{kind} lr={training.learning_rate:.1e} patch={size}",
        "parent": parent,
        "started_ms": time.time_ns() // 1_000_000,
        "params": inputs["train"] | {"steps": training.plan().steps, "parameters": trainable},
        "tags": {
            "gliotrail.kind": kind,
            "gliotrail.inputs": digest_of(inputs),
            "gliotrail.data": inputs["data"],
            "gliotrail.code": inputs["code"],
            "gliotrail.parameters_other": str(other),
            "mlflow.source.git.commit": git_commit(),
            "mlflow.source.name": f"pipelines.{kind}",
            "mlflow.source.type": "JOB",
            "mlflow.user": getpass.getuser(),
            **{f"env.{name}": value for name, value in environment().items()},
            **{f"dvc.{path}": digests[path] for path in paths if path in digests},
        },
        "datasets": [
            {"name": path, "digest": digests[path], "path": path, "context": "training"}
            for path in paths
            if path in digests
        ],
    }


def write_artifacts(training: Training, run: RunFolder) -> None:
    """Files a run has from its start: params, dvc.lock, a table and a drawing of the network."""
    model = training.section.model
    rows = layer_rows(build(model))
    drawing = draw_network(model.depth, model.base_filters, len(CHANNELS), len(CLASSES))
    files = {"network.txt": parameter_table(rows).encode(), "network.png": figure_png(drawing)}
    for path in (Path("params.yaml"), Path("dvc.lock")):
        if path.is_file():
            files[path.name] = path.read_bytes()
    for name, content in files.items():
        write_durably(run.root / "artifacts" / name, content)
