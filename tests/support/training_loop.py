"""Short trainings of a small network, and what they reported."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gliotrail.dataset.brats import BRATS
from gliotrail.errors import TrainingError
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.split import Region
from gliotrail.segmentation.batches import Patches
from gliotrail.segmentation.loop import (
    SCORE,
    Plan,
    State,
    World,
    fit,
)
from gliotrail.segmentation.unet import UNet3d, initialize
from gliotrail.segmentation.validation import validate
from tests.support.scans import augmented

PLAN = Plan(
    steps=8,
    steps_per_epoch=4,
    batch_size=2,
    learning_rate=1e-2,
    weight_decay=1e-3,
    warmup_steps=2,
    average=0.9,
    clip=0,
    optimizer="adamw",
    keep="last",
    loss="soft_dice",
    precision="float32",
)
REGIONS = (
    Region("BRATS_009", Box((10, 10, 4), (26, 26, 12))),
    Region("BRATS_119", Box((30, 20, 0), (46, 36, 8))),
)
TIMINGS = {
    "train/voxels_per_s",
    "train/data_wait_share",
    "train/step_s_median",
    "train/step_s_p95",
}


class Seen:
    """What a training reported: metrics, and states where asked for."""

    def __init__(self, *snapshots: int) -> None:
        self.metrics: list[dict[str, float]] = []
        self.states: dict[int, State] = {}
        self.wanted = snapshots

    def __call__(
        self, step: int, metrics: Mapping[str, float], snapshot: Callable[[], State]
    ) -> None:
        self.metrics.append({"step": step, **metrics})
        if step in self.wanted:
            self.states[step] = snapshot()

    @property
    def without_timings(self) -> list[dict[str, float]]:
        return [{k: v for k, v in m.items() if k not in TIMINGS} for m in self.metrics]

    @property
    def losses(self) -> np.ndarray:
        return np.array([m["train/soft_dice_loss"] for m in self.metrics])


def network(base: int = 2) -> UNet3d:
    model = UNet3d(2, base)
    initialize(model, 1)
    return model


def train(
    patches: Patches,
    plan: Plan,
    *,
    base: int = 2,
    seen: Seen | None = None,
    state: State | None = None,
    world: World | None = None,
    scores: list[float] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> State:
    """Train a small network. Judged by the crops, or in turn by `scores`."""
    world = world or World()

    def judge(model: torch.nn.Module) -> Mapping[str, float]:
        if scores is not None:
            return {SCORE: scores.pop(0)}
        assert isinstance(model, UNet3d)
        return validate(model, BRATS, patches.cases, REGIONS, "foreground", 0.5, world)

    return fit(network(base), patches, plan, judge, seen or Seen(), world, state, stop)


def train_there(world: World, patches: Patches, plan: Plan) -> tuple[Any, ...]:
    """On a worker: metrics and final tensors, as what can be sent."""
    seen = Seen()
    state = train(patches, plan, seen=seen, world=world)
    return seen.without_timings, {name: t.numpy() for name, t in state.tensors.items()}


def stopped_there(world: World, patches: Patches, plan: Plan, rank: int) -> int:
    """The last step, where one worker is asked to stop at the third."""
    asked = iter([False, False, world.rank == rank, False])
    return train(patches, plan, world=world, stop=asked.__next__).step


def error_there(world: World, patches: Patches, plan: Plan) -> str:
    with pytest.raises(TrainingError) as stopped:
        train(patches, plan, world=world)
    return str(stopped.value)


def one_patch(patches: Patches) -> Patches:
    index = patches.index
    row = int(index.voxels[:, 0].argmin())
    columns = ("case_number", "corner_vox", "voxels", "class_centred")
    alone = replace(index, **{name: getattr(index, name)[row : row + 1] for name in columns})
    return replace(patches, index=alone, augment=augmented())


def equal(a: State, b: State) -> bool:
    same = (a.step, a.kept_score, a.kept_step) == (b.step, b.kept_score, b.kept_step)
    same &= a.tensors.keys() == b.tensors.keys()
    return same and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
