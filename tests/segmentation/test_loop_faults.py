from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gliotrail.errors import TrainingError
from gliotrail.segmentation.batches import Patches, Sample, batches
from gliotrail.segmentation.loop import (
    SCORE,
    World,
    fit,
    gradients_and_losses,
)
from gliotrail.segmentation.precision import peak_flops, training_flops
from gliotrail.segmentation.unet import UNet3d
from tests.support.gloo import Workers
from tests.support.training_loop import PLAN, Seen, error_there, network, train


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
