import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail import params
from gliotrail.segmentation.loop import Plan
from tests.support.scans import ROOT


def plan_of(size_vox: tuple[int, int, int], **changes: Any) -> Plan:
    rest = {"weight_decay": 0, "average": 0, "clip": 0, "optimizer": "adamw", "keep": "last"}
    values = {"epochs": 3, "epoch_voxels": 10**6, "batch_size": 4, "warmup": 0.1, **rest}
    values |= {"loss": "dice_ce", "learning_rate": 1e-3, "precision": "float32", **changes}
    return Plan.of(size_vox=size_vox, **values)


PLAN = plan_of((8, 8, 8))


def test_the_learning_rate_rises_to_its_value_and_falls_to_nearly_0() -> None:
    plan = replace(PLAN, steps=110, warmup_steps=10, learning_rate=0.2)
    rates = [plan.learning_rate_at(step) for step in range(110)]
    assert rates[:3] == pytest.approx([0.02, 0.04, 0.06])
    assert rates[9] == rates[10] == 0.2
    assert rates[60] == pytest.approx(0.1)
    assert rates[109] == pytest.approx(0.1 * (1 + math.cos(0.99 * math.pi)))
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)


def test_the_learning_rate_of_sgd_falls_as_nnu_net_s() -> None:
    plan = replace(PLAN, steps=1000, warmup_steps=0, learning_rate=0.01, optimizer="sgd")
    wanted = [0.01 * (1 - step / 1000) ** 0.9 for step in range(1000)]
    assert [plan.learning_rate_at(step) for step in range(1000)] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "rates"),
    [(1, 0, [1]), (1, 1, [1]), (2, 0, [1, 0.5]), (3, 3, [1 / 3, 2 / 3, 1])],
)
def test_the_learning_rate_of_the_shortest_plans(
    steps: int, warmup_steps: int, rates: list[float]
) -> None:
    plan = replace(PLAN, steps=steps, warmup_steps=warmup_steps, learning_rate=1)
    assert [plan.learning_rate_at(step) for step in range(steps)] == pytest.approx(rates)


@given(
    size=st.tuples(*[st.integers(1, 160)] * 3),
    batch_size=st.integers(1, 16),
    epoch_voxels=st.integers(1, 10**8),
)
@settings(deadline=None)
def test_an_epoch_is_as_many_voxels_whatever_the_patch_size(
    size: tuple[int, int, int], batch_size: int, epoch_voxels: int
) -> None:
    plan = plan_of(size, batch_size=batch_size, epoch_voxels=epoch_voxels)
    step_voxels = batch_size * math.prod(size)
    assert plan.steps == 3 * plan.steps_per_epoch
    off = abs(plan.steps_per_epoch * step_voxels - epoch_voxels)
    assert off <= step_voxels / 2 or (plan.steps_per_epoch == 1 and step_voxels > epoch_voxels)


def test_the_demo_s_epochs_are_25_steps_of_32x32x32() -> None:
    section = params.load(ROOT / "params.yaml").train
    steps = [
        plan_of(size, epochs=10, epoch_voxels=section.epoch_voxels).steps
        for size in ((32, 32, 32), (48, 48, 16), (32, 32, 16))
    ]
    assert section.batch_size == 4
    assert steps == [250, 220, 500]
    assert plan_of((32, 32, 32), epochs=10, epoch_voxels=3932160).warmup_steps == 30
