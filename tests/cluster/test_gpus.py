"""Who computes on GPUs, and what is said of it. Ray's GPUs are logical ones: there is no card."""

import pytest
import torch

from gliotrail.cluster import gpus
from gliotrail.cluster.gpus import (
    backend_of,
    decide,
    device_of,
    gpus_wanted,
    micro_batch_wanted,
)
from gliotrail.errors import ClusterError, ParamsError


@pytest.mark.parametrize(
    ("text", "trial_workers", "wanted"),
    [
        ("", None, None), ("auto", None, None), ("0", None, 0), ("1", None, 1), ("1", 2, 1),
        ("0.5", 1, 0.5), (".25", 1, 0.25),
    ],
)  # fmt: skip
def test_what_each_worker_gets_is_said_by_one_variable(
    text: str, trial_workers: int | None, wanted: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIOTRAIL_GPUS", text)
    assert gpus_wanted(trial_workers) == wanted


@pytest.mark.parametrize(
    ("text", "trial_workers", "line"),
    [
        ("half", 1, "wanted auto, 0, 1 or a share such as 0.5, got 'half'"),
        ("-1", 1, "wanted auto, 0, 1 or a share such as 0.5, got '-1'"),
        ("0.0", 1, "wanted auto, 0, 1 or a share such as 0.5, got '0.0'"),
        ("1e-3", 1, "wanted auto, 0, 1 or a share such as 0.5, got '1e-3'"),
        ("0.5", None, "wanted auto, 0 or 1 for a training, got 0.5"),
        ("0.5", 2, "wanted auto, 0 or 1 for 2 workers a trial, got 0.5"),
        ("8", None, "wanted 1: each worker computes on one, got 8; for 8 GPUs set"
                    " GLIOTRAIL_WORKERS=8"),
        ("2", 1, "wanted 1: each worker computes on one, got 2; for 2 GPUs set"
                 " GLIOTRAIL_TRIAL_WORKERS=2"),
    ],
)  # fmt: skip
def test_what_no_worker_can_get_is_refused(
    text: str, trial_workers: int | None, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIOTRAIL_GPUS", text)
    variable = "GLIOTRAIL_TRIAL_WORKERS" if trial_workers else "GLIOTRAIL_WORKERS"
    with pytest.raises(ParamsError) as told:
        gpus_wanted(trial_workers, variable)
    assert str(told.value) == f"GLIOTRAIL_GPUS: {line}"


def test_the_former_variable_is_told_the_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIOTRAIL_TRIAL_GPUS", "0.5")
    with pytest.raises(ParamsError, match="set GLIOTRAIL_GPUS"):
        gpus_wanted(1)


@pytest.mark.parametrize(
    ("text", "there", "own", "starts", "share", "line"),
    [
        ("auto", [{"CPU": 2}], True, False, 0, "on CPUs: this machine has no GPU"),
        ("auto", [{"CPU": 2, "GPU": 2}], True, False, 1, "on GPUs: this machine has 2"),
        ("auto", [{"CPU": 2}, {"GPU": 8}], False, False, 1, "on GPUs: the cluster has 8"),
        ("auto", [{"CPU": 2}], False, True, 1, "on GPUs: the cluster starts machines with GPUs"),
        ("auto", [{"CPU": 2}], False, False, 0, "on CPUs: the cluster has no GPU and starts none"),
        ("0", [{"CPU": 2, "GPU": 2}], True, False, 0, "on CPUs: GLIOTRAIL_GPUS=0"),
        ("1", [{"CPU": 2}], True, False, 1, "on GPUs: GLIOTRAIL_GPUS=1"),
        ("0.5", [{"CPU": 2}], True, False, 0.5, "on 0.5 of a GPU each: GLIOTRAIL_GPUS=0.5"),
    ],
)
def test_the_first_line_says_which_and_why(
    text: str, there: list[dict[str, float]], own: bool, starts: bool, share: float, line: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("GLIOTRAIL_GPUS", text)
    monkeypatch.setattr(gpus, "nodes", lambda: there)
    monkeypatch.setattr(gpus, "is_own", lambda: own)
    monkeypatch.setattr(gpus, "can_start_gpus", lambda look: starts)
    assert decide(gpus_wanted(1), "train") == share
    assert capsys.readouterr().err == f"train: {line}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_with_a_gpu_and_no_cuda_says_so_and_takes_no_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert device_of(0) == torch.device("cpu")
    assert (backend_of(0), backend_of(1)) == ("gloo", "nccl")
    with pytest.raises(ClusterError, match="a worker was given a GPU, and PyTorch can't compute"):
        device_of(0.5)
    monkeypatch.setenv("GLIOTRAIL_TEST_GPU_IS_CPU", "1")
    assert device_of(1) == torch.device("cpu")
    assert backend_of(1) == "gloo"


def test_how_many_patches_at_a_time_is_said_by_one_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for text, wanted in (("", None), ("auto", None), ("2", 2)):
        monkeypatch.setenv("GLIOTRAIL_MICRO_BATCH", text)
        assert micro_batch_wanted() == wanted
    monkeypatch.setenv("GLIOTRAIL_MICRO_BATCH", "0")
    with pytest.raises(ParamsError, match="GLIOTRAIL_MICRO_BATCH: wanted a whole number above 0"):
        micro_batch_wanted()
