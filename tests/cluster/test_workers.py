"""What becomes of what a worker raises. Ray Train calls its function in this process: 0 workers."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.train import ScalingConfig, TrainingFailedError
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from gliotrail.cluster import workers
from gliotrail.cluster.connection import Resources
from gliotrail.cluster.fixed_scaling import Fixed
from gliotrail.cluster.shared_files import share
from gliotrail.cluster.workers import fit_on_workers
from gliotrail.errors import TrainingError
from gliotrail.runs.journal import TRACEBACK_FILE, RunFolder
from gliotrail.runs.store import Store
from gliotrail.segmentation.loop import World
from gliotrail.training.driver import result, run_training
from tests.segmentation.test_keras import convolutions, save_old
from tests.support.crops import Crops
from tests.support.environment import in_state
from tests.support.gloo import gloo_workers
from tests.support.scans import edit_json


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_workers_own_traceback_is_kept(crops: Crops, tmp_path: Path, ray_cluster: None) -> None:
    there, run = Crops(tmp_path / "crops"), RunFolder(tmp_path / "run")
    shutil.copytree(crops.root, there.root)
    case = there.prepared / "cases/BRATS_009/case.json"
    edit_json(case, lambda values: values.update(std_C=[1e-300] * 4))  # patches are infinite
    with pytest.raises(TrainingError, match="loss at step 1") as caught:
        fit_on_workers(there.training(), run, Resources(0, 1, 0))
    run.end("FAILED", str(caught.value), error=caught.value)
    kept = (run.root / TRACEBACK_FILE).read_text()
    assert "in run_training" in kept
    assert kept.endswith(f"TrainingError: {caught.value}\n")


def test_a_fixed_number_of_workers_is_decided_without_an_autoscaler() -> None:
    policy = Fixed(ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}))
    policy.after_controller_start(None)  # would start the process that asks
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision == ResizeDecision(2, {"CPU": 1})
    policy.before_controller_abort()


def context(rank: int, workers: int) -> SimpleNamespace:
    """What Ray Train tells a worker; all are on this machine."""
    told = {"world_rank": rank, "world_size": workers, "node_rank": 0, "local_rank": rank}
    return SimpleNamespace(**{f"get_{name}": lambda n=n: n for name, n in told.items()})


NO_ROOM = "CUDA out of memory"
BUG = {
    ValueError("a bug"): "ValueError: got a bug; look at the run's traceback; it was not tried",
    torch.OutOfMemoryError(NO_ROOM): f"the GPU's memory ran out: got {NO_ROOM}; set"
    " GLIOTRAIL_MICRO_BATCH=1, or a smaller train.patch_size or train.batch_size",
}


@pytest.mark.parametrize("error", BUG)
def test_what_is_no_lost_worker_ends_after_one_try_with_a_line_that_says_what_to_do(
    error: Exception, crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, run = [], RunFolder(tmp_path / "run")
    run.root.mkdir()
    config = {"training": crops.training(), "root": str(run.root), "until": None, "of_a_gpu": 0,
              "first_weights": None, "judge_start": False}  # fmt: skip

    def fails(*_: object) -> None:
        tries.append(1)
        raise error

    def fit(*_: object) -> None:  # as Ray does without a worker left to replace
        try:
            workers._work(config)
        except type(error) as raised:
            raise TrainingFailedError from raised

    monkeypatch.setattr(workers, "run_training", fails)
    monkeypatch.setattr(workers, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(workers, "get_context", lambda: context(0, 1))
    monkeypatch.setattr(workers, "_fit", fit)
    with pytest.raises(TrainingError) as told:
        fit_on_workers(crops.training(), run, Resources(1, 1, 0))
    assert str(told.value).startswith(BUG[error])
    workers._work(config)  # one that Ray starts in its place does nothing
    assert len(tries) == 1


def test_a_lost_worker_is_tried_again(
    crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise workers._PeerLostError("connection closed by peer")

    monkeypatch.setattr(workers, "run_training", fails)
    monkeypatch.setattr(workers, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(workers, "get_context", lambda: context(0, 1))
    config = {"training": crops.training(), "root": str(tmp_path), "until": None, "of_a_gpu": 0,
              "first_weights": None, "judge_start": False}  # fmt: skip
    for _ in range(2):
        with pytest.raises(workers._PeerLostError):
            workers._work(config)


def hangs(world: World) -> tuple[float, str]:
    """Rank 1 takes two steps and hangs; what rank 0 makes of it, after how long."""
    workers._LEAST_S = 2.0
    sums = workers._Sums()
    for _ in range(2):
        sums.in_place(torch.ones(1))
    sums.expect_s(0.01)
    if world.rank == 1:
        time.sleep(12)
        return 0, ""
    began = time.monotonic()
    try:
        sums.in_place(torch.ones(1))
    except workers._PeerLostError as error:
        return time.monotonic() - began, str(error)
    return 0, "it came after all"


def test_a_worker_that_hangs_is_an_error_soon(tmp_path: Path) -> None:
    with gloo_workers(2, tmp_path) as both:
        waited_s, told = both(2, hangs)[0]
    assert told.startswith("workers could not sum within 2 s: ")
    assert 1.5 < waited_s < 8


def work(world: World, config: dict[str, object], state: Path) -> str:
    """What one of Ray Train's workers does, in a process that Ray knows nothing of."""
    with pytest.MonkeyPatch.context() as patched:
        in_state(state, patched)
        patched.setattr(workers, "get_context", lambda: context(world.rank, world.workers))
        patched.setattr(workers, "get_current_placement_group", lambda: None)
        patched.setattr(workers, "ray_report", lambda metrics: None)
        workers._work(config)
    failed = Path(str(config["root"])) / "failed.json"
    return failed.read_text() if failed.is_file() else ""


def test_two_workers_train_to_the_end_within_their_time_limits(
    crops: Crops, tmp_path: Path
) -> None:
    training, run = crops.training(), RunFolder(tmp_path / "run")
    config = {"training": training, "root": str(run.root), "until": None, "of_a_gpu": 0,
              "first_weights": None, "judge_start": False}  # fmt: skip
    with gloo_workers(2, tmp_path) as both:
        assert both(2, work, config, tmp_path) == ["", ""]
    state, _ = result(training, run)
    assert state.step > 1
    keys = {point.key for point in run.points() if point.key.startswith("system/")}
    assert {f"system/{name}" for name in (
        "cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_usage_percentage",
        "network_receive_megabytes",
    )} <= keys  # fmt: skip


def test_first_weights_that_one_machine_made_reach_a_worker_on_another(
    crops: Crops, tmp_path: Path, job_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_old(tmp_path / "w.h5", convolutions())  # converted on the driver's machine, by its name
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path / "one"))
    training = crops.training(train__init=str(tmp_path / "w.h5"), train__epochs=1)
    here, there = RunFolder(tmp_path / "here"), RunFolder(tmp_path / "there")
    run_training(training, here, World())
    assert training.init is not None
    first, content = share(training.init), training.init.read_bytes()
    training.init.unlink()
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path / "another"))
    monkeypatch.setattr(workers, "bring_inputs", dict)  # the job has no other data
    monkeypatch.setattr(workers, "get_context", lambda: context(0, 1))
    monkeypatch.setattr(workers, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(workers, "ray_report", lambda metrics: None)
    workers._work({"training": training, "root": str(there.root), "until": None, "of_a_gpu": 0,
                   "first_weights": first, "judge_start": False})  # fmt: skip
    training.init.write_bytes(content)  # the driver's machine has it
    assert result(training, there)[1] == result(training, here)[1]
