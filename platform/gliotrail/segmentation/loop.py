"""The training loop: plain PyTorch, from top to bottom. It knows nothing of where it runs.

It is handed a `World` (which worker this is, how to sum over all workers) and a `report` that gets
every step's numbers and may ask for a snapshot. Batch size and budget are global: one worker and
many take the same steps, up to the rounding of sums.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gliotrail.errors import TrainingError
from gliotrail.param_types import Size
from gliotrail.segmentation.batches import Batch, Source, batches
from gliotrail.segmentation.losses import loss_key, loss_named
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.optimizers import (
    REMEMBERED,
    average_into,
    optimizer_of,
    set_learning_rate,
)
from gliotrail.segmentation.precision import DTYPES, convolutions_in, gpu_metrics

SCORE: Final = "val/dice_mean_regions"
"""The metric that decides which weights are the best, and which trial and champion win."""
EPOCH_END: Final = "train/learning_rate"
"""A metric that the last step of each epoch has, and no other step."""

_SURELY_NOT: Final = -30.0
"""A logit whose sigmoid is 1e-13: small enough for any loss, and finite in half precision."""
_MOST_NAMED: Final = 8
_POLY_POWER: Final = 0.9


@dataclass(frozen=True)
class World:
    """Which worker this is, and how a tensor is summed in place over all of them.

    expect_s: receives how long a plain step takes by now; None before the first one and around a
        validation and its report.
    micro_batch: how many samples go through the network at a time; None is all of a worker's, and
        fewer where they don't fit in the GPU's memory at its first step.
    of_machines: metrics of the workers' machines, at each validation; all workers call it.
    """

    rank: int = 0
    workers: int = 1
    sum_in_place: Callable[[Tensor], object] = lambda tensor: None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    expect_s: Callable[[float | None], object] = lambda median_s: None
    micro_batch: int | None = None
    of_machines: Callable[[], dict[str, float]] = dict


def device_here() -> torch.device:
    """The first GPU of those that this process may use, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """How long, how fast, with what."""

    steps: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    average: float
    clip: float
    optimizer: str
    keep: str
    loss: str
    precision: str

    @classmethod
    def of(
        cls,
        *,
        epochs: int,
        epoch_voxels: int,
        size_vox: Size,
        batch_size: int,
        warmup: float,
        **rest: Any,
    ) -> "Plan":
        """An epoch is a number of voxels, so that it is the same work for every patch size."""
        per_epoch = max(1, round(epoch_voxels / (batch_size * math.prod(size_vox))))
        steps = epochs * per_epoch
        return cls(steps, per_epoch, batch_size, warmup_steps=round(warmup * steps), **rest)

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that each step reports: the one that is trained on, and soft Dice."""
        return tuple(dict.fromkeys((self.loss, "soft_dice")))

    def learning_rate_at(self, step: int) -> float:
        """Linear rise, then half a cosine down to 0 (Loshchilov and Hutter, arXiv:1608.03983).

        With `sgd` the fall is nnU-Net's polynomial one (arXiv:1904.08128).
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.optimizer == "sgd":
            return float(self.learning_rate * (1 - done) ** _POLY_POWER)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


@dataclass
class State:
    """All that the next step depends on: tensors by name, and the steps that were taken.

    `kept_score` and `kept_step` are of the weights that `Plan.keep` asks for.
    """

    step: int
    tensors: dict[str, Tensor]
    kept_score: float = -math.inf
    kept_step: int = 0

    def weights(self, which: str) -> dict[str, Tensor]:
        """The `last`, the `averaged` or the `kept` weights, by the network's own names."""
        of = f"{which}."
        return {n.removeprefix(of): t for n, t in self.tensors.items() if n.startswith(of)}


class Report(Protocol):
    """Gets each step's metrics, counted from 1. `snapshot()` copies the state as it is then."""

    def __call__(
        self, step: int, metrics: Mapping[str, float], snapshot: Callable[[], State]
    ) -> None:
        """After each step, on every worker."""


class NotFiniteError(TrainingError):
    """A loss or a gradient is NaN or Inf. `led_there`: step, rate, losses and patches, for JSON.

    It names all patches of the step: which of them caused it is not known.
    """

    def __init__(self, losses: Mapping[str, float], step: int, plan: Plan, source: Source) -> None:
        numbers = range(step * plan.batch_size, (step + 1) * plan.batch_size)
        samples = [source.sample(number) for number in numbers]
        rate, loss = plan.learning_rate_at(step), losses[plan.loss]
        self.led_there = {
            "step": step + 1,
            "learning_rate": rate,
            "losses": {name: str(value) for name, value in losses.items()},  # JSON has no NaN
            "samples": [asdict(sample) for sample in samples],
        }
        named = [f"{s.case} at {s.corner_vox}" for s in samples[:_MOST_NAMED]]
        named += [f"{len(samples) - _MOST_NAMED} more"] if len(samples) > _MOST_NAMED else []
        what = "gradient" if math.isfinite(loss) else "loss"
        super().__init__(
            f"{what} at step {step + 1}, learning rate {rate:.3g}, on {'; '.join(named)}",
            wanted="finite numbers",
            got="NaN or Inf" if math.isfinite(loss) else loss,
            do="lower train.learning_rate or look at these patches",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # another process needs the message alone
        return (TrainingError, (str(self),))


def fit(
    model: nn.Module,
    source: Source,
    plan: Plan,
    validate: Callable[[nn.Module], Mapping[str, float]],
    report: Report,
    world: World | None = None,
    state: State | None = None,
    stop: Callable[[], bool] = lambda: False,
    until: int | None = None,
) -> State:
    """Train from `state` (or from the start) to the plan's end, or until asked to stop.

    Args:
        validate: called on every worker at each epoch's end; its numbers include SCORE, unless
            the `last` weights are kept: without it they are unmeasured, their score is NaN.
        report: called after every step, on every worker.
        stop: called at every step; if it is true on any worker, that step is the last on all.
        until: how many steps of the plan to take for now; all of them if None.

    Returns:
        the last state; the weights to use are its `kept` ones.

    Raises:
        NotFiniteError: the loss or a gradient is no finite number.
    """
    world = world or World()
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
        torch.backends.cudnn.deterministic = True  # the same bits each time, as on a CPU
    model.to(world.device, DTYPES["float64"] if plan.precision == "float64" else None)
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(plan.optimizer, trained, plan.weight_decay)
    scaler = torch.amp.GradScaler(world.device.type, enabled=plan.precision == "float16")
    averaged = copy.deepcopy(model)
    share = plan.batch_size / world.workers
    of_gpu = partial(gpu_metrics, model, source.size_vox, share, plan.precision, world.device)
    state = replace(state) if state else State(0, {})
    kept = state.weights("kept")
    if state.step:
        model.load_state_dict(state.weights("last"))
        averaged.load_state_dict(state.weights("averaged"))
        _restore(model, optimizer, scaler, state, plan)

    epoch_started, waited_s, steps_s = time.perf_counter(), 0.0, list[float]()
    usual_s = None
    micro_batch = world.micro_batch or -(-plan.batch_size // world.workers)
    steps = range(state.step, plan.steps if until is None else until)
    of_worker = (world.rank, world.workers, world.device, torch.get_num_threads())
    stream = batches(source, steps, plan.batch_size, *of_worker)
    for step in steps:
        asked = time.perf_counter()
        batch = next(stream)
        waited_s += time.perf_counter() - asked
        world.expect_s(usual_s)

        set_learning_rate(optimizer, plan.learning_rate_at(step))
        parts = partial(gradients_and_losses, model, batch, plan, scaler, world, stop())
        if step == steps[0]:
            flat, micro_batch = _as_much_as_fits(parts, micro_batch, world)
        else:
            flat = parts(micro_batch)
        *values, votes = flat[-len(plan.losses) - 1 :].tolist()
        losses = dict(zip(plan.losses, values, strict=True))
        loss = losses[plan.loss]
        # in float16 the scaler leaves out a step whose gradients are infinite
        if not math.isfinite(loss) or (plan.precision != "float16" and not flat.isfinite().all()):
            raise NotFiniteError(losses, step, plan, source)
        if plan.clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained, plan.clip)
        scaler.step(optimizer)
        scaler.update()
        average_into(averaged, model, plan.average, step)

        metrics = {f"train/{loss_key(name)}": value for name, value in losses.items()}
        steps_s.append(time.perf_counter() - asked)
        usual_s = median(steps_s)
        if (step + 1) % plan.steps_per_epoch == 0 or step + 1 == plan.steps:
            elapsed_s = time.perf_counter() - epoch_started
            voxels = len(steps_s) * plan.batch_size * math.prod(source.size_vox)
            metrics |= {
                EPOCH_END: plan.learning_rate_at(step),
                "train/voxels_per_s": voxels / elapsed_s,
                "train/data_wait_share": waited_s / elapsed_s,
                "train/step_s_median": usual_s,
                "train/step_s_p95": float(np.percentile(steps_s, 95)),
                **of_gpu(usual_s),
            }
            world.expect_s(None)
            metrics |= validate(averaged)
            score = metrics.get(SCORE, math.nan)
            if plan.keep == "last" or score > state.kept_score:
                kept = {name: t.detach().clone() for name, t in averaged.state_dict().items()}
                state.kept_score, state.kept_step = score, step + 1
            epoch_started, waited_s, steps_s, usual_s = time.perf_counter(), 0.0, [], None

        state.step = step + 1
        networks = (model, averaged, kept)
        report(step + 1, metrics, partial(_snapshot, state, networks, optimizer, scaler))
        if votes:
            break
    return _snapshot(state, (model, averaged, kept), optimizer, scaler)


def _as_much_as_fits(
    parts: Callable[[int], Tensor], micro_batch: int, world: World
) -> tuple[Tensor, int]:
    """The first step's gradients and losses, and how many samples at a time fit in memory.

    Only this worker tries again: the others wait for its summands.
    """
    while True:
        try:
            return parts(micro_batch), micro_batch
        except torch.OutOfMemoryError:
            if world.micro_batch or micro_batch == 1:
                raise
            micro_batch //= 2
            torch.cuda.empty_cache()


def gradients_and_losses(
    model: nn.Module,
    batch: Batch,
    plan: Plan,
    scaler: torch.amp.GradScaler,
    world: World,
    stop: bool,
    micro_batch: int | None = None,
) -> Tensor:
    """The global batch's gradients, its mean losses, and how many workers were asked to stop, flat.

    The gradients are also left in the parameters, the same on every worker.

    Args:
        micro_batch: how many samples go through the network at a time; all of them if None.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    sums = scaler.scale(torch.zeros(len(plan.losses), device=world.device))  # sets the scaler up
    at_once = micro_batch or max(1, len(batch.samples))
    for first in range(0, len(batch.samples), at_once):
        part = slice(first, first + at_once)
        image = _to_device(batch.image_BCIJK[part], plan, world)
        targets = _to_device(batch.targets_BCIJK[part], plan, world)
        reduced = plan.precision in {"bfloat16", "float16"}
        with convolutions_in(plan.precision):
            with torch.autocast(world.device.type, DTYPES[plan.precision], enabled=reduced):
                given = model.supervised(image) if isinstance(model, Network) else [model(image)]
            # where the truth is unknown, the prediction counts as right: no gradient
            levels = [logits.masked_fill(targets.isnan(), _SURELY_NOT) for logits in given]
            targets = targets.nan_to_num(0)
            if getattr(model, "heads", "classes") == "regions":
                # each class' mask and those of all classes inside it
                targets = targets.flip(1).cumsum(1).flip(1)
            losses = torch.stack([loss_named(n)(levels[0], targets).sum() for n in plan.losses])
            judged = losses[0]
            for depth, logits in enumerate(levels[1:], start=1):
                judged = judged + loss_named(plan.loss)(logits, targets).sum() / 2**depth
            of_all = 2 - 0.5 ** (len(levels) - 1)  # 1 + 1/2 + 1/4 + ...
            scaler.scale(judged / (plan.batch_size * of_all)).backward()
        sums = losses.detach() if first == 0 else sums + losses.detach()
    # one flat tensor, one sum: the same order of additions whatever the timing of the workers
    pieces = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    vote = torch.full((1,), float(stop), device=world.device)
    flat = torch.cat([*(p.reshape(-1) for p in pieces), sums / plan.batch_size, vote])
    world.sum_in_place(flat)
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat


def _to_device(tensor: Tensor, plan: Plan, world: World) -> Tensor:
    dtype = torch.float64 if plan.precision == "float64" else torch.float32
    # the copy from pinned memory goes on while the CPU goes ahead
    return tensor.to(world.device, dtype, non_blocking=True, memory_format=torch.channels_last_3d)


def _snapshot(
    state: State,
    networks: tuple[nn.Module, nn.Module, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> State:
    """A copy that later steps don't change."""
    model, averaged, kept = networks
    tensors = {f"last.{name}": t for name, t in model.state_dict().items()}
    tensors |= {f"averaged.{name}": t for name, t in averaged.state_dict().items()}
    tensors |= {f"kept.{name}": t for name, t in kept.items()}
    for name, parameter in model.named_parameters():
        for key, t in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = t
    for key, number in scaler.state_dict().items():
        tensors[f"scaler.{key}"] = torch.tensor(number)
    copied = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
    return State(state.step, copied, state.kept_score, state.kept_step)


def _restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: State,
    plan: Plan,
) -> None:
    """The inverse of `_snapshot`, for all but the weights."""
    whole = optimizer.state_dict()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    for place, name in enumerate(trained):
        moments = {key: f"optimizer.{key}.{name}" for key in REMEMBERED[plan.optimizer]}
        # there are none yet if float16's first steps were skipped
        whole["state"][place] = {
            key: state.tensors[of].clone() for key, of in moments.items() if of in state.tensors
        }
    optimizer.load_state_dict(whole)
    if scaler.is_enabled():
        keys = scaler.state_dict()
        scaler.load_state_dict({key: state.tensors[f"scaler.{key}"].item() for key in keys})
