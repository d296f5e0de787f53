import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from gliotrail.segmentation.batches import Patches, batches
from gliotrail.segmentation.loop import (
    SCORE,
    State,
    World,
    fit,
    gradients_and_losses,
)
from gliotrail.segmentation.losses import LOSSES
from tests.support.gloo import Workers
from tests.support.training_loop import (
    PLAN,
    TIMINGS,
    Seen,
    equal,
    network,
    one_patch,
    same,
    stopped_there,
    train,
    train_there,
)


@pytest.mark.parametrize(
    ("loss", "before", "after"), [("soft_dice", 0.5, 0.2), ("dice_ce", 1.2, 0.7)]
)
def test_one_patch_is_learnt_by_heart(
    patches: Patches, loss: str, before: float, after: float
) -> None:
    """Measured: 0.53 to 0.14, and 1.33 to 0.52."""
    plan = replace(PLAN, steps=30, steps_per_epoch=30, batch_size=1, loss=loss)
    seen = Seen()
    train(one_patch(patches), plan, base=4, seen=seen, scores=[0.0])
    losses = [m[f"train/{loss}_loss"] for m in seen.metrics]
    assert losses[0] > before
    assert losses[-1] < after


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 5), (2, 5), (2, 1), (4, 5)])
def test_many_workers_take_the_steps_of_one_in_float64(
    gloo: Workers, patches: Patches, workers: int, batch_size: int
) -> None:
    plan = replace(PLAN, steps=20, steps_per_epoch=10, batch_size=batch_size, precision="float64")
    seen = Seen()
    alone = train(patches, plan, seen=seen)
    told = gloo(workers, train_there, patches, plan)
    for metrics, tensors in told:
        assert len(metrics) == 20
        for ours, wanted in zip(metrics, seen.without_timings, strict=True):
            assert ours == pytest.approx(wanted, rel=1e-9)
        for name, wanted in alone.tensors.items():
            assert np.abs(tensors[name] - wanted.numpy()).max() <= 1e-9 * wanted.abs().max()
    assert told[0][0] == told[-1][0]
    assert all(np.array_equal(t, told[-1][1][name]) for name, t in told[0][1].items())


def test_two_workers_take_the_first_steps_of_one_in_float32(
    gloo: Workers, patches: Patches
) -> None:
    plan = replace(PLAN, steps=10, steps_per_epoch=10, batch_size=4)
    seen = Seen()
    train(patches, plan, seen=seen)
    for metrics, _ in gloo(2, train_there, patches, plan):
        ours = [m["train/soft_dice_loss"] for m in metrics]
        assert ours == pytest.approx(seen.losses, rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_worker_that_is_asked_to_stop_stops_all(
    gloo: Workers, patches: Patches, rank: int
) -> None:
    assert gloo(2, stopped_there, patches, replace(PLAN, batch_size=2), rank) == [3, 3]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_trains_also_where_a_worker_has_nothing_to_do(
    gloo: Workers, patches: Patches, precision: str
) -> None:
    plan = replace(PLAN, batch_size=1, steps=4, precision=precision)
    seen = Seen()
    train(patches, replace(plan, precision="float32"), seen=seen)
    for metrics, tensors in gloo(2, train_there, patches, plan):
        ours = [m["train/soft_dice_loss"] for m in metrics]
        assert ours == pytest.approx(seen.losses, rel=0.02)
        assert tensors["last.head.weight"].dtype == np.float32


@pytest.mark.parametrize(
    ("after", "keep", "precision", "base"),
    [
        (3, "best", "float32", 8),
        (4, "best", "float32", 3),
        (5, "last", "float32", 2),
        (7, "best", "float64", 2),
        (2, "last", "bfloat16", 2),
        (6, "best", "float16", 2),
        (8, "last", "float32", 2),
    ],
)
def test_a_training_that_goes_on_ends_as_if_it_had_never_stopped(
    patches: Patches, after: int, keep: str, precision: str, base: int
) -> None:
    from gliotrail.training.state_file import from_bytes, to_bytes

    plan = replace(PLAN, keep=keep, precision=precision)
    whole, rest = Seen(after), Seen()
    wanted = train(patches, plan, base=base, seen=whole)
    state = from_bytes(to_bytes(whole.states[after]))
    assert equal(state, whole.states[after])
    ended = train(patches, plan, base=base, seen=rest, state=state)
    assert equal(ended, wanted)
    assert rest.without_timings == whole.without_timings[after:]
    assert [m["step"] for m in rest.metrics] == list(range(after + 1, 9))
    # what was handed in is as it was, and can be gone on from again
    assert equal(state, whole.states[after])


def test_sgd_goes_on_from_its_momentum(patches: Patches) -> None:
    plan = replace(PLAN, optimizer="sgd", clip=0.5)
    seen = Seen(3)
    wanted = train(patches, plan, seen=seen)
    assert "optimizer.momentum_buffer.head.weight" in seen.states[3].tensors
    assert equal(train(patches, plan, state=seen.states[3]), wanted)
    assert not equal(train(patches, replace(plan, optimizer="adamw")), wanted)


def test_a_step_is_no_longer_than_the_clipped_gradient(patches: Patches) -> None:
    plan = replace(PLAN, optimizer="sgd", weight_decay=0, warmup_steps=0, steps=1)

    def step_length(clip: float) -> float:
        after = train(patches, replace(plan, clip=clip), scores=[0.0]).weights("last")
        before = network().state_dict()
        return math.sqrt(sum((after[n] - before[n]).square().sum().item() for n in before))

    free = step_length(0)
    gradient = free / (1.99 * plan.learning_rate)  # Nesterov's first step: 1 + the momentum
    assert step_length(gradient / 10) == pytest.approx(free / 10, rel=1e-3)
    assert step_length(gradient * 10) == free


def test_region_heads_learn_the_nested_regions(patches: Patches) -> None:
    """A logit of WT is pulled up where edema is, one of ET only where ET is."""
    model = network()
    model.heads = "regions"
    with torch.no_grad():
        model.head.weight.zero_()
    batch = next(batches(patches, range(1), 2))
    flat = gradients_and_losses(
        model, batch, replace(PLAN, loss="dice_ce"), torch.amp.GradScaler("cpu", enabled=False),
        World(), stop=False,
    )  # fmt: skip
    targets = batch.targets_BCIJK
    regions = torch.stack([targets.sum(1), targets[:, 1:].sum(1), targets[:, 2]], dim=1)
    wanted = LOSSES["dice_ce"](torch.zeros_like(regions), regions).mean()
    assert flat[-3].item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_step_that_float16_leaves_out_is_gone_on_from(patches: Patches) -> None:
    """The scale is halved, and no moments exist yet."""
    with pytest.MonkeyPatch.context() as patch:
        too_much = torch.amp.GradScaler("cpu", init_scale=2.0**120)
        patch.setattr(torch.amp, "GradScaler", lambda device, enabled: too_much)
        seen = Seen(1)
        train(patches, replace(PLAN, precision="float16", steps=1), seen=seen, scores=[0.0])
    state = seen.states[1]
    assert state.tensors["scaler.scale"] == 2.0**119
    assert not [name for name in state.tensors if name.startswith("optimizer.")]
    assert torch.equal(state.tensors["last.head.weight"], network().head.weight)
    ended = train(patches, replace(PLAN, precision="float16", steps=2), state=state)
    assert ended.tensors["scaler.scale"] == 2.0**118


def test_a_snapshot_is_not_changed_by_later_steps(patches: Patches) -> None:
    taken, copies = [], []

    def report(step: int, metrics: Mapping[str, float], snapshot: Callable[[], State]) -> None:
        taken.append(snapshot())
        copies.append(copy.deepcopy(taken[-1]))

    end = fit(network(), patches, PLAN, lambda model: {SCORE: 0.0}, report)
    assert all(equal(*pair) for pair in zip(taken, copies, strict=True))
    assert not same(taken[3].weights("last"), taken[4].weights("last"))
    assert equal(end, taken[-1])


@pytest.mark.parametrize(("keep", "step", "score"), [("best", 8, 0.9), ("last", 16, 0.2)])
def test_the_weights_to_use_are_the_best_or_the_last(
    patches: Patches, keep: str, step: int, score: float
) -> None:
    seen = Seen(3, 4, 8, 12, 16)
    scores = [0.3, 0.9, 0.9, 0.2]
    plan = replace(PLAN, steps=16, keep=keep, batch_size=1)
    end = train(patches, plan, seen=seen, scores=scores)
    assert (end.kept_step, end.kept_score) == (step, score)
    assert seen.states[3].weights("kept") == {}
    for at in (4, 8, 12, 16):
        kept, averaged = (seen.states[at].weights(which) for which in ("kept", "averaged"))
        chosen = same(kept, averaged)
        assert chosen == (keep == "last" or at in {4, 8})
    assert same(end.weights("kept"), seen.states[step].weights("averaged"))
    assert [m[SCORE] for m in seen.metrics if SCORE in m] == [0.3, 0.9, 0.9, 0.2]


def test_an_average_of_0_is_the_plain_weights(patches: Patches) -> None:
    seen = Seen(*range(1, 9))
    train(patches, replace(PLAN, average=0), seen=seen)
    for state in seen.states.values():
        assert same(state.weights("averaged"), state.weights("last"))


def test_the_average_is_exponential_and_quick_at_first(patches: Patches) -> None:
    seen = Seen(*range(1, 9))
    plan = replace(PLAN, average=0.2, precision="float64")
    train(patches, plan, seen=seen)
    wanted = network().double().head.weight.detach()
    for step, decay in enumerate([1 / 10, 2 / 11, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], start=1):
        last = seen.states[step].weights("last")["head.weight"]
        wanted = decay * wanted + (1 - decay) * last
        averaged = seen.states[step].weights("averaged")["head.weight"]
        torch.testing.assert_close(averaged, wanted, rtol=1e-12, atol=0)
        assert not torch.equal(averaged, last)


def test_validation_judges_the_averaged_weights(patches: Patches) -> None:
    judged = []

    def judge(model: torch.nn.Module) -> Mapping[str, float]:
        judged.append({name: t.clone() for name, t in model.state_dict().items()})
        return {SCORE: 0.5}

    seen = Seen(4, 8)
    fit(network(), patches, PLAN, judge, seen)
    for weights, state in zip(judged, seen.states.values(), strict=True):
        assert same(weights, state.weights("averaged"))
        assert not same(weights, state.weights("last"))


def test_every_step_is_reported_and_each_epoch_s_end_judged(patches: Patches) -> None:
    seen = Seen()
    train(patches, replace(PLAN, steps=10), seen=seen)
    ends = [m["step"] for m in seen.metrics if SCORE in m]
    assert [m["step"] for m in seen.metrics] == list(range(1, 11))
    assert ends == [4, 8, 10]
    for metrics in seen.metrics:
        assert 0 < metrics["train/soft_dice_loss"] < 1
        assert (metrics.keys() >= TIMINGS) == (metrics["step"] in ends)
    last = seen.metrics[-1]
    assert last["train/learning_rate"] == replace(PLAN, steps=10).learning_rate_at(9)
    assert last["train/voxels_per_s"] > 0
    assert 0 <= last["train/data_wait_share"] < 1
