"""The comparisons of `make gpu-check`, of the CPU with itself: here there may be no GPU."""

from itertools import count

import pytest
import torch

from gliotrail.segmentation.unet import UNet3d, initialize
from tests.cluster import gpu_check

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SOURCE", gpu_check.Balls((8, 8, 8)))


def test_a_device_that_computes_the_same_passes_every_row() -> None:
    rows = list(gpu_check.rows(CPU, 2, 2, ["float32"]))
    assert [row.what for row in rows if not row.holds] == []
    assert [row.what for row in rows] == [
        "float32: logits", "float32: gradients", "float32: losses of 2 steps",
        "channels_last_3d: logits", "prediction", "prediction in blocks",
        "the same training twice: values that differ",
    ]  # fmt: skip


def test_a_device_that_computes_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = count()

    def another(base_filters: int) -> UNet3d:
        model = UNet3d(2, base_filters)
        initialize(model, next(seeds))
        return model

    monkeypatch.setattr(gpu_check, "network", another)
    failed = [row.what for row in gpu_check.rows(CPU, 2, 2, ["float32"]) if not row.holds]
    assert failed == [
        "float32: logits", "float32: gradients", "float32: losses of 2 steps",
        "the same training twice: values that differ",
    ]  # fmt: skip
    assert not gpu_check.Row("no number", float("nan"), 1).holds


def test_speed_is_what_the_loop_tells() -> None:
    told = gpu_check.speed(CPU, "float32", 2, 2)
    assert set(told) == {"voxels_per_s", "step_s_median", "step_s_p95"}
    assert all(value > 0 for value in told.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "gpu-check: no GPU that PyTorch can use here; nothing was compared"
    ]


@pytest.mark.long
def test_two_workers_are_compared_with_one() -> None:
    assert gpu_check.two_workers("gloo", 2, 2).holds
