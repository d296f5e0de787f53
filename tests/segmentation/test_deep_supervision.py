"""nnU-Net's deep supervision: coarser levels teach, and leave nothing in what is used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from gliotrail.dataset.brats import BRATS
from gliotrail.params import Model
from gliotrail.segmentation.batches import Patches, batches
from gliotrail.segmentation.loop import World, gradients_and_losses
from gliotrail.segmentation.losses import loss_named
from gliotrail.segmentation.network import Network
from gliotrail.segmentation.unet import initialize
from gliotrail.segmentation.weights import Description, build, load_into, read, to_bytes
from tests.support.training_loop import PLAN

PLAIN = Model(name="dynunet", depth=4, base_filters=4)
SUPERVISED = PLAIN.model_copy(update={"deep_supervision": True})


def network(model: Model, seed: int = 3) -> Network:
    made = build(model, BRATS)
    initialize(made, seed)
    return made


def test_levels_are_weighed_one_half_quarter_and_the_told_loss_is_the_output_s(
    patches: Patches,
) -> None:
    plan = replace(PLAN, batch_size=1, loss="dice_ce", precision="float64")
    model, batch = network(SUPERVISED).double(), next(batches(patches, range(1), 1))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    flat = gradients_and_losses(model, batch, plan, scaler, World(), stop=False)
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    levels = model.supervised(batch.image_BCIJK.double())
    assert len(levels) == 3
    assert not torch.allclose(levels[0], levels[1])
    losses = [loss_named("dice_ce")(one, batch.targets_BCIJK.double()).sum() for one in levels]
    (sum(w * loss for w, loss in zip((4, 2, 1), losses, strict=True)) / 7).backward()
    for grad, parameter in zip(got, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-9, atol=1e-12)
    assert float(flat[-3]) == pytest.approx(losses[0].item())


def test_a_training_starts_from_weights_without_coarser_levels_and_keeps_its_own(
    tmp_path: Path,
) -> None:
    plain, path = network(PLAIN), tmp_path / "model.safetensors"
    path.write_bytes(
        to_bytes(plain.state_dict(), Description(model=PLAIN, standardize="foreground"))
    )
    model = network(SUPERVISED, seed=4)
    own = {k: t.clone() for k, t in model.state_dict().items() if "supervision" in k}
    load_into(model, *read(path), BRATS)
    state = model.state_dict()
    assert own
    for name, tensor in (plain.state_dict() | own).items():
        assert torch.equal(state[name], tensor)
    image = torch.randn(1, 4, 16, 16, 16)
    assert torch.equal(model(image), plain(image))


def test_only_dynunet_has_levels_to_judge() -> None:
    with pytest.raises(ValidationError, match="deep_supervision: true is for dynunet"):
        Model(name="unet3d", depth=2, base_filters=4, deep_supervision=True)
