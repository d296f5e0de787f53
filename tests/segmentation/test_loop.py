import copy
import math
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
from gliotrail.segmentation.loop import (
    SCORE,
    Plan,
    State,
    World,
    fit,
    gradients_and_losses,
    training_flops,
)
from gliotrail.segmentation.losses import LOSSES
from gliotrail.segmentation.precision import peak_flops
from gliotrail.segmentation.sampling import Patches, Sample, batches
from gliotrail.segmentation.unet import UNet3d, initialize
from gliotrail.segmentation.validation import validate
from tests.support.gloo import Workers
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
        return validate(model, BRATS, patches.cases, REGIONS, "brain", 0.5, world)

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
    columns = ("case_number", "corner_vox", "voxels", "tumour_centred")
    alone = replace(index, **{name: getattr(index, name)[row : row + 1] for name in columns})
    return replace(patches, index=alone, augment=augmented())


def equal(a: State, b: State) -> bool:
    same = (a.step, a.kept_score, a.kept_step) == (b.step, b.kept_score, b.kept_step)
    same &= a.tensors.keys() == b.tensors.keys()
    return same and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
    from gliotrail.training.driver import from_bytes, to_bytes

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


def not_a_number_from(patches: Patches, case: str) -> Patches:
    spoilt = replace(patches.cases[case], mean_C=np.full(4, np.nan))
    return replace(patches, cases={**patches.cases, case: spoilt})


def test_a_loss_that_is_no_number_stops_naming_step_rate_and_patches(patches: Patches) -> None:
    case = patches.sample(4).case
    first = next(n for n in range(14) if patches.sample(n).case == case)
    seen = Seen()
    with pytest.raises(TrainingError) as stopped:
        train(not_a_number_from(patches, case), replace(PLAN, batch_size=1), seen=seen)
    rate = PLAN.learning_rate_at(first)
    where = f"{case} at {patches.sample(first).corner_vox}"
    assert str(stopped.value) == (
        f"loss at step {first + 1}, learning rate {rate:.3g}, on {where}: wanted finite numbers, "
        "got nan; lower train.learning_rate or look at these patches"
    )
    assert len(seen.metrics) == first


def test_every_worker_names_all_patches_of_the_step(gloo: Workers, patches: Patches) -> None:
    bad = patches.sample(0).case
    plan = replace(PLAN, batch_size=3)
    told = gloo(2, error_there, not_a_number_from(patches, bad), plan)
    assert told[0] == told[1]
    for n in range(3):
        sample = patches.sample(n)
        assert f"{sample.case} at {sample.corner_vox}" in told[0]


def test_a_gradient_that_is_no_number_stops_though_the_loss_is_one(patches: Patches) -> None:
    """Infinite activations saturate the sigmoid: a loss, and 0 times infinity in its gradient."""
    model = network()
    with torch.no_grad():
        model.up[0][0].bias.fill_(3e38)
        model.up[0][1].weight.fill_(1)
        model.head.weight.fill_(1)
    with pytest.raises(TrainingError, match=r"gradient at step 1, .* got NaN or Inf"):
        fit(model, patches, PLAN, lambda model: {SCORE: 0.0}, Seen())


def test_nothing_is_learnt_where_the_truth_is_unknown(patches: Patches) -> None:
    class Unknown(Patches):
        def serve(self, sample: Sample) -> tuple[Any, Any]:
            image_CIJK, targets_CIJK = super().serve(sample)
            return image_CIJK, np.where(image_CIJK[:3] < 9e9, np.nan, targets_CIJK)

    plan = replace(PLAN, weight_decay=0, loss="dice_ce")
    blind = Unknown(**vars(patches))
    state = train(blind, plan)
    for name, tensor in network().state_dict().items():
        assert torch.equal(state.tensors[f"last.{name}"], tensor)
    assert not torch.equal(
        train(patches, plan).tensors["last.head.weight"], network().state_dict()["head.weight"]
    )


def test_the_soft_dice_loss_is_told_whatever_is_trained_on(patches: Patches) -> None:
    seen = Seen()
    train(patches, replace(PLAN, loss="dice_ce"), seen=seen)
    for metrics in seen.metrics:
        assert 0 < metrics["train/soft_dice_loss"] < metrics["train/dice_ce_loss"]


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
@pytest.mark.parametrize("loss", ["soft_dice", "dice_ce"])
def test_gradients_of_parts_of_a_batch_add_up(
    patches: Patches, micro_batch: int, loss: str
) -> None:
    plan = replace(PLAN, batch_size=5, loss=loss, precision="float64")
    model = network().double()
    batch = next(batches(patches, range(1), 5))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    whole = gradients_and_losses(model, batch, plan, scaler, World(), stop=False).clone()
    seen = []
    model.register_forward_hook(lambda *args: seen.append(len(args[2])))
    parts = gradients_and_losses(model, batch, plan, scaler, World(), False, micro_batch)
    assert max(seen) == micro_batch
    assert sum(seen) == 5
    assert float((parts - whole).norm() / whole.norm()) < 1e-6


def test_what_does_not_fit_at_the_first_step_is_halved_until_it_does(patches: Patches) -> None:
    model, sizes = network(), []

    def too_much(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(too_much)
    plan = replace(PLAN, batch_size=8, steps=2)
    seen, plain = Seen(), Seen()
    fit(model, patches, plan, lambda _: {SCORE: 0.0}, seen)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    fit(network(), patches, plan, lambda _: {SCORE: 0.0}, plain)
    assert np.allclose(seen.losses, plain.losses, rtol=1e-5)
    with pytest.raises(torch.OutOfMemoryError):  # as many as asked for, or none
        fit(model, patches, plan, lambda _: {SCORE: 0.0}, seen, World(micro_batch=4))


def test_a_step_that_comes_after_a_validation_may_take_any_time(patches: Patches) -> None:
    told: list[float | None] = []
    fit(network(), patches, PLAN, lambda _: {SCORE: 0.0}, Seen(), World(expect_s=told.append))
    known = [median_s is not None for median_s in told]
    # before each of 8 steps, and before the validation after each 4th
    assert known == [False, True, True, True, False, False, True, True, True, False]
    assert all(0 < median_s < 60 for median_s in told if median_s is not None)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_tf32_is_taken_where_it_is_asked_for_alone(patches: Patches, precision: str) -> None:
    before = torch.backends.cudnn.allow_tf32
    model, seen = network(), set()
    model.head.register_forward_hook(lambda *_: seen.add(torch.backends.cudnn.allow_tf32))
    plan = replace(PLAN, steps=1, precision=precision)
    fit(model, patches, plan, lambda _: {SCORE: 0.0}, Seen())
    assert seen == {precision == "tf32"}
    assert torch.backends.cudnn.allow_tf32 == before


def test_the_sums_of_a_step_are_counted_and_compared_with_what_is_known_of_a_gpu() -> None:
    """A 1x1x1 convolution of the head: twice in * out * voxels there, and twice that back."""
    size_vox = (16, 16, 8)
    model = UNet3d(1, 2, up_convolution="plain")
    forward = 2 * 27 * (4 * 2 + 2 * 4) * 2048 + 2 * 4 * 3 * 2048
    of_image = 2 * 27 * 4 * 2 * 2048  # nobody asks for the image's own gradient
    assert training_flops(model, size_vox) == 3 * forward - of_image
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 19.5e12
    assert peak_flops("NVIDIA H100 PCIe", "tf32") == 378e12
    assert peak_flops("Tesla V100-SXM2-16GB", "tf32") is None
    assert peak_flops("a card of tomorrow", "float32") is None
