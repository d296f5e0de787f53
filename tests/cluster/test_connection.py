import os
import socket
import subprocess
import sys

import pytest
import ray

from gliotrail.cluster.connection import (
    Resources,
    check_shares,
    nodes,
    share_out,
    total,
    workers_wanted,
)
from gliotrail.cluster.trials import (
    CONCURRENT,
    TRIAL_CPUS,
    TRIAL_WORKERS,
    resources,
)
from gliotrail.errors import ClusterError, ParamsError
from tests.support.projects import ROOT


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", " ", "²", "9" * 9, "1 2"])
def test_a_number_of_workers_that_is_none_is_told(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIOTRAIL_WORKERS", text)
    with pytest.raises(ParamsError) as told:
        workers_wanted()
    assert str(told.value) == f"GLIOTRAIL_WORKERS: wanted a whole number above 0, got {text!r}"


def test_the_number_of_workers_is_the_environments_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIOTRAIL_WORKERS", "12")
    assert workers_wanted() == (12, None)
    monkeypatch.setenv("GLIOTRAIL_WORKERS", "1:4")
    assert workers_wanted() == (4, 1)
    for text in (None, ""):
        if text is None:
            monkeypatch.delenv("GLIOTRAIL_WORKERS")
        else:
            monkeypatch.setenv("GLIOTRAIL_WORKERS", text)
        assert workers_wanted() == (None, None)


@pytest.mark.parametrize("text", ["4:1", "0:1", "1:", ":2", "1:2:3", "1: 2"])
def test_a_span_of_workers_that_is_none_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIOTRAIL_WORKERS", text)
    with pytest.raises(ParamsError, match="wanted the fewest and the most, such as 1:4, got"):
        workers_wanted()


SMALL, BIG, WITH_GPUS = {"CPU": 2.0}, {"CPU": 16.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("there", "workers", "shared"),
    [
        ([SMALL], None, Resources(2, 1, 0)),
        ([SMALL], 1, Resources(1, 2, 0)),
        ([{"CPU": 1.0}], None, Resources(1, 1, 0)),
        ([BIG], None, Resources(2, 8, 0)),
        ([BIG], 3, Resources(3, 5, 0)),
        ([SMALL] * 3, 2, Resources(2, 2, 0)),  # 3 cores each fit on no machine
        ([SMALL] * 3, 4, Resources(4, 1, 0)),
        ([BIG, SMALL], 2, Resources(2, 8, 0)),
        ([WITH_GPUS], None, Resources(4, 4, 1)),
        ([WITH_GPUS, BIG], None, Resources(4, 4, 1)),  # cores of the machine with the GPUs
        ([WITH_GPUS] * 2, 2, Resources(2, 16, 1)),
        ([WITH_GPUS], None, Resources(2, 8, 0)),  # GLIOTRAIL_GPUS=0
        ([WITH_GPUS], 5, Resources(5, 3, 0)),
    ],
)
def test_workers_share_the_machines(
    there: list[dict[str, float]], workers: int | None, shared: Resources
) -> None:
    assert share_out(there, workers, of_a_gpu=shared.gpus_per_worker) == shared


def test_nobody_says_how_many_workers_then_each_has_a_patch() -> None:
    eight = [{"CPU": 32.0, "GPU": 8.0}]
    assert share_out(eight, None, of_a_gpu=1, patches=4) == Resources(4, 8, 1)
    assert share_out(eight, None, of_a_gpu=1, patches=16) == Resources(8, 4, 1)
    assert share_out([BIG], None, patches=1) == Resources(1, 16, 0)
    assert share_out(eight, 6, of_a_gpu=1, patches=4).workers == 6  # refused: see check_shares


@pytest.mark.parametrize(("workers", "fewest"), [(9, None), (16, 4), (16, 9)])
def test_more_workers_than_patches_are_refused_with_the_numbers_that_fit(
    workers: int, fewest: int | None
) -> None:
    with pytest.raises(ParamsError) as told:
        check_shares(workers, fewest, 8, "GLIOTRAIL_WORKERS")
    assert str(told.value).startswith(
        "GLIOTRAIL_WORKERS: wanted at most 8, as many as train.batch_size (1, 2, 4, 8 have equal"
        " shares), got "
    )


def test_uneven_shares_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    for workers in (None, 1, 2, 4, 8):
        check_shares(workers, None, 8, "GLIOTRAIL_WORKERS")
    assert capsys.readouterr().err == ""
    check_shares(3, 1, 8, "GLIOTRAIL_WORKERS")
    assert capsys.readouterr().err.splitlines() == [
        "GLIOTRAIL_WORKERS: 3 workers share 8 patches, 2 or 3 each; 1, 2, 4, 8 have equal shares"
    ]


@pytest.mark.parametrize(
    ("there", "fewest", "most", "cpus"),
    [([SMALL] * 2, 1, 2, 2), ([SMALL], 1, 2, 1), ([SMALL], 1, 4, 1), ([BIG, SMALL], 2, 32, 1)],
)
def test_as_many_workers_as_there_can_be_share_the_machines(
    there: list[dict[str, float]], fewest: int, most: int, cpus: int
) -> None:
    assert share_out(there, most, fewest) == Resources(most, cpus, 0, fewest)
    with pytest.raises(ClusterError, match="wanted 19 to 32 workers of 1 CPU, got a cluster of 18"):
        share_out([BIG, SMALL], 32, 19)


@pytest.mark.parametrize(
    ("there", "workers", "wanted", "got"),
    [
        ([SMALL], 3, "3 workers of 1 CPU", "2 CPUs and 0 GPUs"),
        ([], None, "1 workers of 1 CPU", "0 CPUs and 0 GPUs"),
        ([WITH_GPUS], 5, "5 workers of 1 CPU and 1 GPU", "16 CPUs and 4 GPUs"),
        ([{"CPU": 0.0, "GPU": 1.0}], 1, "1 workers of 1 CPU and 1 GPU", "0 CPUs and 1 GPUs"),
        ([BIG], None, "1 workers of 1 CPU and 1 GPU", "16 CPUs and 0 GPUs"),
    ],
)
def test_what_can_never_start_is_told_at_once(
    there: list[dict[str, float]], workers: int | None, wanted: str, got: str
) -> None:
    with pytest.raises(ClusterError) as told:
        share_out(there, workers, of_a_gpu="GPU" in wanted)
    assert str(told.value) == (
        f"training can never start: wanted {wanted}, got a cluster of {got};"
        " lower GLIOTRAIL_WORKERS"
        + (
            ", or set GLIOTRAIL_GPUS=0 for CPUs"
            if got.endswith(" 0 GPUs") and "GPU" in wanted
            else ""
        )
    )


def test_the_cluster_of_this_machine_has_its_cores(ray_cluster: None) -> None:
    (node,) = nodes()
    assert total([node], "CPU") == 2


ASK = """
import ray
ray.init("{address}", logging_level="critical", log_to_driver=False)
print("got in:", ray.cluster_resources()["CPU"])
"""


SHORT = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_gcs_server_port_wait_time_s": "5"}
"""Who is not let in is told so soon."""


@pytest.mark.parametrize(
    ("known", "gets_in"),
    [
        ({}, True),
        ({"RAY_AUTH_TOKEN": "0" * 64}, False),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, False),
    ],
)
def test_only_who_has_the_token_gets_in(
    known: dict[str, str], gets_in: bool, ray_cluster: None
) -> None:
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(address=address)],
        env={**os.environ, **SHORT, **known},
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert ("got in: 2" in done.stdout) == gets_in
    assert (done.returncode == 0) == gets_in


CONNECT = """
from gliotrail.cluster.connection import cluster
from gliotrail.errors import one_line_errors
with one_line_errors(), cluster() as connected:
    connected()
"""


def dead_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("address", ["DEAD", "ray://DEAD", "127.0.0.1:99999", "ray:nonsense"])
def test_an_address_where_no_cluster_answers_is_one_line(address: str) -> None:
    address = address.replace("DEAD", dead_address())
    done = subprocess.run(
        [sys.executable, "-c", CONNECT],
        cwd=ROOT, env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: RAY_ADDRESS={address}: no Ray cluster answers: got ")


def test_a_cluster_of_this_machine_that_does_not_start_is_tried_again_and_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONNECT],
        cwd=ROOT, env=os.environ | {"RAY_TMPDIR": "/proc/none"}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    *tries, line = done.stderr.splitlines()
    assert len(tries) == 2
    assert all(told.startswith("Ray did not start (") for told in tries)
    assert all(told.endswith("); trying again") for told in tries)
    assert line.startswith("error: Ray does not start: got ")


# a sweep's trials


@pytest.mark.parametrize(
    ("there", "trials", "workers", "cpus", "most", "each", "at_once"),
    [
        ([SMALL], 4, None, None, None, Resources(1, 1, 0), 2),
        ([SMALL], 4, None, None, "1", Resources(1, 2, 0), 1),
        ([SMALL], 4, None, "2", None, Resources(1, 2, 0), 1),
        ([BIG], 4, None, "3", None, Resources(1, 3, 0), 4),
        ([BIG], 9, None, "3", None, Resources(1, 3, 0), 5),
        ([BIG], 9, None, "3", "2", Resources(1, 3, 0), 2),
        ([WITH_GPUS], 9, None, None, None, Resources(1, 4, 1), 4),
        ([WITH_GPUS, BIG], 9, None, "8", None, Resources(1, 8, 1), 2),
        ([SMALL], 4, "2", None, None, Resources(2, 1, 0), 1),
        ([BIG], 4, "2", None, "3", Resources(2, 2, 0), 3),
        ([BIG], 9, "2", "3", None, Resources(2, 3, 0), 2),
        ([SMALL] * 3, 9, "2", "2", None, Resources(2, 2, 0), 1),
        ([WITH_GPUS] * 2, 9, "3", None, None, Resources(3, 5, 1), 2),
    ],
)
def test_trials_share_the_machines(
    there: list[dict[str, float]],
    trials: int,
    workers: str | None,
    cpus: str | None,
    most: str | None,
    each: Resources,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TRIAL_WORKERS, workers or "")
    monkeypatch.setenv(TRIAL_CPUS, cpus or "")
    monkeypatch.setenv(CONCURRENT, most or "")
    assert resources(there, trials, each.gpus_per_worker) == (each, at_once)


def test_trials_may_share_a_gpu() -> None:
    assert resources([WITH_GPUS], 9, 0.5) == (Resources(1, 2, 0.5), 8)
    assert resources([WITH_GPUS], 9, 0.5)[0].describe() == "1 workers of 2 CPU and 0.5 GPU"
    with pytest.raises(ClusterError, match="or set GLIOTRAIL_GPUS=0 for CPUs"):
        resources([SMALL], 9, 0.5)


@pytest.mark.parametrize(
    ("workers", "cpus", "wanted", "lower"),
    [
        ("1", "17", "1 workers of 17 CPU", "CPUS"),
        ("3", "8", "3 workers of 8 CPU", "WORKERS"),
        ("21", "", "21 workers of 1 CPU", "WORKERS"),
    ],
)
def test_a_trial_that_can_never_fit_is_refused_at_once(
    workers: str, cpus: str, wanted: str, lower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRIAL_WORKERS, workers)
    monkeypatch.setenv(TRIAL_CPUS, cpus)
    with pytest.raises(ClusterError) as told:
        resources([BIG, SMALL, SMALL], 4, 0)
    assert str(told.value) == (
        f"a trial can never start: wanted {wanted}, got machines of"
        f" 16 CPUs and 0 GPUs / 2 CPUs and 0 GPUs; lower GLIOTRAIL_TRIAL_{lower}"
    )
