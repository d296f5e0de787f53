"""One training, wherever it runs: the function that `train`'s workers and a sweep's trials call.

It goes on from the run's last final checkpoint, and makes new ones.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gliotrail.dataset.patients import of_same_patients
from gliotrail.errors import ParamsError, TrainingError
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.patch import read_index
from gliotrail.imaging.prepared import Prepared, load_prepared
from gliotrail.imaging.split import Region, fold_of
from gliotrail.param_types import Size
from gliotrail.params import Model
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import cpu_model
from gliotrail.runs.stop import asked_by
from gliotrail.runs.tracked_run import CHECKPOINT_EVERY_S, TrackedRun
from gliotrail.runs.webhook import NOT_FINITE_FILE
from gliotrail.segmentation import weights
from gliotrail.segmentation.batches import FUSED_FROM_VOXELS, Mixture, Patches, Phantoms, Source
from gliotrail.segmentation.loop import (
    EPOCH_END,
    SCORE,
    NotFiniteError,
    Plan,
    State,
    World,
    fit,
)
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.postprocess import Postprocess
from gliotrail.segmentation.unet import initialize
from gliotrail.segmentation.validation import rules_of_validation, validate, validate_synthetic
from gliotrail.synthesis.tumours import (
    Anatomy,
    Floats,
    Mask,
    Style,
    read_anatomy,
    read_shape,
    shape_path,
    synthesize,
)
from gliotrail.training.inputs import Training
from gliotrail.training.state_file import from_bytes, to_bytes
from gliotrail.training.validation_picture import draw_validation

OnEpoch = Callable[[dict[str, float]], None]
"""Called on every worker at each epoch's end, with its number `epoch`, from 1, and any SCORE."""


def made_on(world: World) -> dict[str, str]:
    """What a training's bits depend on besides its inputs; kept with each checkpoint."""
    on_gpu = world.device.type == "cuda"
    return {
        "workers": str(world.workers),
        "threads": str(torch.get_num_threads()),
        "cpu": f"{cpu_model()} ({torch.backends.cpu.get_cpu_capability()})",
        "gpu": torch.cuda.get_device_name(world.device) if on_gpu else "none",
        "torch": torch.__version__,
    }


def plan_of(training: Training) -> Plan:
    """Steps and rates for the loop."""
    section = training.section
    return Plan.of(
        epochs=section.epochs,
        epoch_voxels=section.epoch_voxels,
        size_vox=training.size_vox,
        batch_size=section.batch_size,
        warmup=section.warmup,
        learning_rate=training.learning_rate,
        weight_decay=section.weight_decay,
        average=section.average,
        clip=section.clip,
        optimizer=section.optimizer,
        keep=section.keep,
        loss=section.loss,
        precision=section.precision,
    )


def run_training(
    training: Training,
    run: RunFolder,
    world: World,
    on_epoch: OnEpoch | None = None,
    until: int | None = None,
    judge_start: bool = False,
) -> State:
    """Train to the plan's end, from the last final checkpoint if there is one.

    Every worker calls it; worker 0 writes the run's folder. A run that is asked to stop (see
    `runs.stop`) makes a checkpoint of its last step.

    Args:
        until: the epoch to stop after, if that is not the plan's last.
        judge_start: whether the first weights are validated, too, as step 0.

    Raises:
        TrainingError, DataError, ParamsError: from the loop, the data and the params.
        TrackingError: the checkpoint is damaged, or a newer attempt has taken the run.
    """
    section, plan = training.section, plan_of(training)
    check_precision(section.precision, world.device)
    prepared = data_of(training)
    source = source_of(training, prepared)
    judged = synthetic_scans(training)
    model = first_network(training)
    if section.freeze == "encoder":
        for part in model.encoder:
            part.requires_grad_(False)
    # before `restore`: no older attempt may go on
    tracked = None
    if world.rank == 0:
        tracked = TrackedRun(run, made_on(world), CHECKPOINT_EVERY_S, stops=False)
    state = restore(run)
    shown: dict[Region, Labels] = {}

    def show(region: Region, labels_IJK: Labels) -> None:
        if tracked is not None and not shown:  # one picture: hundreds of scans would not fit
            shown[region] = labels_IJK

    def judge(network: torch.nn.Module) -> Mapping[str, float]:
        assert isinstance(network, Network)
        busy = world.of_machines()
        if prepared is None:
            return busy | validate_synthetic(network, judged, training.threshold, world, "val")
        synthetic = validate_synthetic(network, judged, training.threshold, world) if judged else {}
        if not prepared.split.validation:
            return busy | synthetic
        real = validate(
            network,
            prepared.task,
            prepared.cases,
            prepared.split.validation,
            section.standardize,
            training.threshold,
            world,
            watch=show,
        )
        return busy | real | synthetic

    def report(step: int, metrics: Mapping[str, float], snapshot: Callable[[], State]) -> None:
        epoch_ends = not step or EPOCH_END in metrics

        def state_then() -> bytes:
            for region, labels_IJK in shown.items():
                assert prepared is not None and tracked is not None
                title = f"{region.case}, validation, step {step} of {plan.steps}"
                picture = draw_validation(prepared, region, labels_IJK, title)
                tracked.picture("validation", picture)
            return to_bytes(snapshot())

        if tracked is not None:
            tracked.report(step, metrics, state=state_then, now=epoch_ends)
        shown.clear()
        if step and epoch_ends and on_epoch is not None:
            if tracked is not None:
                tracked.make_final()  # never report more than is kept
            score = {SCORE: metrics[SCORE]} if SCORE in metrics else {}
            on_epoch({"epoch": step // plan.steps_per_epoch} | score)

    try:
        if state is None and judge_start:
            report(0, judge(model.to(world.device)), lambda: State(0, {}))
        state = fit(
            model,
            source,
            plan,
            judge,
            report,
            world,
            state,
            lambda: asked_by(run) is not None,
            until and until * plan.steps_per_epoch,
        )
        if tracked is not None:
            tracked.make_final()
        return state
    except NotFiniteError as error:
        if tracked is not None:
            tracked.attach(NOT_FINITE_FILE, json.dumps(error.led_there, indent=1).encode())
        raise
    finally:
        if tracked is not None:
            tracked.close()


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse TF32 without hardware for it, and bfloat16 where it is only emulated: a hundred times
    slower on a CPU.

    Raises:
        ParamsError: the device can't compute with it.
    """
    on_gpu = device.type == "cuda"
    if precision == "tf32":
        has, instead = on_gpu and torch.cuda.get_device_capability(device)[0] >= 8, "float32"
    elif precision != "bfloat16":
        return
    elif on_gpu:
        has, instead = torch.cuda.is_bf16_supported(including_emulation=False), "float16"
    else:
        can = torch.cpu.get_capabilities()
        has, instead = any(can.get(n) for n in ("avx512_bf16", "amx_bf16", "bf16")), "float32"
    if not has:
        wanted = "GPU" if on_gpu or precision == "tf32" else "CPU"
        raise ParamsError(
            f"train.precision: {precision}",
            wanted=f"a {wanted} that computes with it",
            got=torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
            do=f"take {instead}",
        )


def data_of(training: Training) -> Prepared | None:
    """The prepared data, split by the training's fold; None if no real data are used.

    Raises:
        DataError: as `load_prepared`.
        ParamsError: as `fold_of`.
    """
    if training.prepared is None:
        return None
    prepared = load_prepared(training.prepared)
    if training.fold is None:
        return prepared
    return replace(prepared, split=fold_of(prepared.split, *training.fold))


def spacing_of(prepared: Prepared | None) -> tuple[float, float, float]:
    """The spacing of the training cases, equal by `prepare`; without any, of synthetic ones."""
    if prepared is None:
        return weights.CUBE_MM
    i, j, k = (round(mm, 3) for mm in prepared.cases[prepared.split.training[0]].spacing_mm)
    return i, j, k


def source_of(training: Training, prepared: Prepared | None) -> Source:
    """Real patches, synthetic ones, or both, by `train.rehearsal`."""
    section, phantoms = training.section, training.phantoms
    if prepared is not None:
        index = read_index(training.index_path).only(prepared.split.training)
        fused = section.epochs * section.epoch_voxels >= FUSED_FROM_VOXELS
        real = Patches(
            index, prepared.cases, section.augment, section.standardize, section.seed, fused
        )
        if not section.rehearsal:
            return real
    names = _rehearsed(training, prepared)
    anatomies, shapes = _synthetic(training.synthetic, *names)
    style, size_vox = Style(phantoms.spans), training.size_vox
    synthetic = Phantoms(anatomies, shapes, style, phantoms.healthy, size_vox, section.seed)
    return Mixture(real, synthetic, section.rehearsal) if prepared else synthetic


def _rehearsed(
    training: Training, prepared: Prepared | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The scans and shapes of synthetic tumours, without those of a fold's validation patients."""
    phantoms = training.phantoms
    judged = [region.case for region in prepared.split.validation] if prepared else []
    known = of_same_patients(judged, (*phantoms.anatomies, *phantoms.shapes))
    anatomies, shapes = (
        tuple(name for name in of if name not in known)
        for of in (phantoms.anatomies, phantoms.shapes)
    )
    return anatomies, shapes


def synthetic_scans(training: Training) -> list[tuple[Floats, Labels, Mask]]:
    """The synthetic scans for validation: image (C, I, J, K), labels, where unknown."""
    judged = training.judged
    if judged is None:
        return []
    anatomies, shapes = _synthetic(training.synthetic, judged.anatomies, judged.shapes)
    scans = []
    for number in range(judged.scans):
        rng = np.random.default_rng((judged.seed, number))
        anatomy, shape = anatomies[number % len(anatomies)], shapes[number % len(shapes)]
        scans.append(synthesize(anatomy, shape, judged.size, rng, Style(judged.spans)))
    return scans


@cache
def _synthetic(
    folder: Path, anatomies: tuple[str, ...], shapes: tuple[str, ...]
) -> tuple[list[Anatomy], list[Labels]]:
    """Cached for the next trial in this process: they take seconds to read."""
    return (
        [read_anatomy(folder / name) for name in anatomies],
        [read_shape(shape_path(folder, name)) for name in shapes],
    )


def first_network(training: Training) -> Network:
    """The network with its first weights, which `preflight.check` has found to fit."""
    with torch.random.fork_rng([]):  # layers that `initialize` leaves are random, too
        torch.manual_seed(training.section.seed)
        model = weights.build(training.section.model, training.task)
    initialize(model, training.section.seed)
    if training.init:
        state, description = weights.read(training.init)
        weights.load_into(model, state, description, training.task, training.init)
    model.window_vox = window_of(training)
    return model


def model_of_weights(training: Training) -> Model:
    """The model of a weights file: without the parts that only training uses."""
    return training.section.model.model_copy(update={"deep_supervision": False})


def window_of(training: Training) -> Size | None:
    """The window of a network that normalises: as large as in training."""
    return None if training.section.model.name == "unet3d" else training.size_vox


def restore(run: RunFolder) -> State | None:
    """The state of the last final checkpoint, its checksum compared; None if there is none.

    That is before the first one, and after all states of a run were removed to make room: its steps
    are then taken again, but not recorded again.

    Raises:
        TrackingError: the checkpoint is damaged.
    """
    history = run.history()
    if not (history and run.states()):
        return None
    return from_bytes(history[-1].state(), history[-1].folder)


def result(training: Training, run: RunFolder, postprocess: bool = False) -> tuple[State, bytes]:
    """The last state of a training that came to its plan's end, and its weights file's content.

    Args:
        postprocess: whether to find rules for label maps, too, if `train.postprocess` is on.

    Raises:
        TrainingError: it didn't come to its end.
    """
    state, steps = restore(run), plan_of(training).steps
    if state is None or state.step < steps:
        got = f"{state.step if state else 0} of {steps} steps"
        raise TrainingError("training stopped early", got=got, do="run it again: it goes on")
    section, prepared = training.section, data_of(training)
    used = model_of_weights(training)
    description = weights.Description(
        model=used,
        window=window_of(training),
        standardize=section.standardize,
        spacing_mm=spacing_of(prepared),
        task=training.task,
        intensities=dict(prepared.intensities) if prepared else {},
        trained_on=seen_by(training, prepared),
    )
    wanted = weights.build(used, training.task).state_dict()
    kept = {name: t for name, t in state.weights("kept").items() if name in wanted}
    if postprocess and prepared and section.postprocess == "validation":
        helps = _rules(training, prepared, kept)
        description = description.model_copy(update={"postprocess": helps})
    return state, weights.to_bytes(kept, description)


def seen_by(training: Training, prepared: Prepared | None) -> tuple[str, ...]:
    """The cases, and the scans and shapes of synthetic ones, that a training's weights saw."""
    before = weights.read(training.init)[1].trained_on if training.init else ()
    cases = prepared.split.training if prepared else ()
    anatomies, shapes = _rehearsed(training, prepared)
    synthetic = (*anatomies, *shapes) if training.section.rehearsal or not prepared else ()
    return tuple(sorted({*before, *cases, *synthetic}))


def _rules(
    training: Training, prepared: Prepared, kept: Mapping[str, Tensor]
) -> Postprocess | None:
    model = weights.build(model_of_weights(training), training.task)
    model.load_state_dict(kept)
    model.window_vox = window_of(training)
    standardize, regions = training.section.standardize, prepared.split.validation
    of = prepared.task, prepared.cases, regions
    return rules_of_validation(model, *of, standardize, training.threshold)
