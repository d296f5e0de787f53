import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail.segmentation.losses import LOSSES, soft_dice, soft_dice_loss

quick = settings(deadline=None, max_examples=50)


def one_class(values: list[list[float]]) -> torch.Tensor:
    """One class of a 2x2x1 patch, as the worked examples give it."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 2, 2, 1)


def random_pair(seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(batch, 3, 4, 5, 3, generator=generator, dtype=torch.float64)
    y = (torch.rand(batch, 3, 4, 5, 3, generator=generator) < 0.3).double()
    return p, y


@pytest.mark.parametrize(
    ("prediction", "truth", "value"),
    [
        ([[1, 0], [0, 1]], [[1, 1], [0, 0]], 0.4),
        ([[0.5, 0], [0, 0.5]], [[1, 1], [0, 0]], 0.4285714285714286),
        ([[1, 0.8], [0, 1]], [[1, 1], [0, 1]], 0.006024096385542355),
    ],
)
def test_soft_dice_loss_is_the_worked_examples(prediction, truth, value):
    loss = soft_dice_loss(one_class(prediction), one_class(truth), eps=1)
    assert loss.item() == pytest.approx(value, abs=1e-15)


def test_perfect_edema_and_nothing_else_costs_two_thirds():
    """Summed over the wrong axes, as the course did, it costs 0.199."""
    y = torch.zeros(1, 3, 8, 8, 4, dtype=torch.float64)
    y[:, 0, :4], y[:, 1, 4:6], y[:, 2, 6:] = 1, 1, 1
    p = y.clone()
    p[:, 1:] = 0
    assert soft_dice_loss(p, y).item() == pytest.approx(2 / 3, abs=1e-6)


@quick
@given(st.integers(0, 2**32 - 1))
def test_soft_dice_is_in_range_symmetric_and_one_where_perfect(seed):
    p, y = random_pair(seed)
    dice = soft_dice(p, y)
    assert ((dice > 0) & (dice <= 1)).all()
    torch.testing.assert_close(soft_dice(y, p), dice, rtol=0, atol=0)
    torch.testing.assert_close(soft_dice(y, y), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_a_sample_s_loss_does_not_depend_on_its_batch(name, seed):
    p, y = random_pair(seed, batch=4)
    order = torch.tensor([2, 0, 3, 1])
    losses = LOSSES[name](p, y)
    assert losses.shape == (4,)
    torch.testing.assert_close(LOSSES[name](p[order], y[order]), losses[order])
    alone = torch.cat([LOSSES[name](p[b : b + 1], y[b : b + 1]) for b in range(4)])
    torch.testing.assert_close(alone, losses, rtol=1e-14, atol=0)


def test_one_missed_voxel_and_all_background():
    y = torch.zeros(1, 3, 4, 4, 4, dtype=torch.float64)
    nothing = torch.zeros_like(y)
    assert soft_dice_loss(nothing, y).item() == 0
    y[0, :, 1, 2, 3] = 1
    assert soft_dice_loss(nothing, y).item() == pytest.approx(1, abs=2e-5)
    assert soft_dice_loss(y, y).item() == 0


def test_dice_ce_is_soft_dice_plus_the_cross_entropy_of_every_voxel():
    logits, y = random_pair(1)
    p = logits.sigmoid()
    entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean((1, 2, 3, 4))
    wanted = entropy + 1 - soft_dice(p, y).mean(1)
    torch.testing.assert_close(LOSSES["dice_ce"](logits, y), wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_summed_in_float32(name):
    """2 x 64^3 = 524,288 is no number in float16, and 257 none in bfloat16."""
    logits = torch.full((1, 1, 64, 64, 64), 8.0)
    y = torch.ones(1, 1, 64, 64, 64)
    wanted = LOSSES[name](logits, y)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = LOSSES[name](logits.to(dtype), y.to(torch.uint8))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_finite_difference(name):
    logits, y = random_pair(3)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, y), logits.requires_grad_())
