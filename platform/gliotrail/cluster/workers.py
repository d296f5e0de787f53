"""Ray Train's side of a training: the workers, and what becomes of their failures.

Nothing here imports MLflow: a worker is ready seconds sooner without it.
"""

import os
import re
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed
from ray import PlacementGroupID, get_runtime_context
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train import (
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    get_context,
)
from ray.train import report as ray_report
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group_table,
    remove_placement_group,
)
from torch.distributed.distributed_c10d import _set_pg_timeout

from gliotrail.cluster.connection import (
    SETTINGS,
    START_LIMIT,
    WORKERS,
    Resources,
    is_own,
)
from gliotrail.cluster.fixed_scaling import Fixed
from gliotrail.cluster.gpus import MICRO_BATCH, backend_of, device_of, micro_batch_wanted
from gliotrail.cluster.job_inputs import bring_inputs, mirror_of
from gliotrail.cluster.node_metrics import sampling
from gliotrail.cluster.shared_files import share
from gliotrail.errors import GliotrailError, TrainingError
from gliotrail.files import read_json, write_json
from gliotrail.paths import state_dir
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.mirror import following, sending
from gliotrail.segmentation.loop import World
from gliotrail.training.driver import run_training
from gliotrail.training.inputs import Training

_FAILURES_SURVIVED: Final = 3
_LOSSES_SURVIVED: Final = 100  # of machines that come and go
_START_S: Final = float(SETTINGS[START_LIMIT])
_LEAST_S: Final = 60.0
_FAILED: Final = "failed.json"
_RESERVED: Final = "reserved.json"


class _Trainer(TorchTrainer):
    """Without helpers that start processes, seconds each, and that a training here has no use for.

    Of Ray's own two: shards of Ray's datasets, and placement groups that outlive their trainer on
    a cluster that outlives them both.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if is_own() else set())
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in unused]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = arguments["scaling_policy"]
        if is_own() and type(policy) is FixedScalingPolicy:
            arguments["scaling_policy"] = Fixed(policy.scaling_config)
        return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]

    def _register_sigint_handler(self, controller: Any) -> None:
        """None: Ray's own aborts without a checkpoint; see `runs.stop`."""


def fit_on_workers(
    training: Training,
    run: RunFolder,
    wanted: Resources,
    callbacks: Sequence[Any] = (),
    until: int | None = None,
) -> None:
    """Train on Ray Train's workers; a killed one is replaced, and all go on from the checkpoint.

    So does Ray Train's controller, which Ray itself doesn't replace.

    Args:
        callbacks: Ray Train's, which are told of each epoch's end.
        until: as `run_training`.

    Raises:
        TrainingError: what a worker raised, or processes that were killed again and again.
    """
    failed = run.root / _FAILED
    failed.unlink(missing_ok=True)
    give_back(run)
    with following(mirror_of(run)):
        for left in reversed(range(_FAILURES_SURVIVED + 1)):
            try:
                _fit(training, run, wanted, callbacks, until)
                break
            except TrainingFailedError as error:
                if failed.is_file():  # a worker said why
                    break
                raise _told("Ray's workers failed", error) from error
            except (RayActorError, OutOfMemoryError) as error:
                if not left:
                    raise _told("Ray's controller failed", error) from error
                _give_back_all()
    told = read_json(failed)
    if told is not None:
        # the run keeps the whole chain: see `RunFolder.end`
        raise TrainingError(told["error"]) from RuntimeError(told["traceback"])


def _fit(
    training: Training,
    run: RunFolder,
    wanted: Resources,
    callbacks: Sequence[Any],
    until: int | None,
) -> None:
    # Ray does nothing for a name that ended once; what resumes is our own folder
    name = f"{run.root.name}-{time.time_ns()}"
    if wanted.at_least:
        # for some seconds Ray counts on a machine that is lost; so long it waits for that one's
        # place before it looks again how many there are. Free places are given in milliseconds.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    trainer = _Trainer(
        _work,
        train_loop_config={
            "training": training,
            "root": str(run.root),
            "until": until,
            "of_a_gpu": wanted.gpus_per_worker,
            "first_weights": share(training.init) if training.init else None,
            # trials are compared epoch by epoch: what they start from is the same for all
            "judge_start": not callbacks,
        },
        torch_config=TorchConfig(backend=backend_of(wanted.gpus_per_worker)),
        scaling_config=ScalingConfig(
            # its stubs don't know of a span
            num_workers=(wanted.at_least, wanted.workers) if wanted.at_least else wanted.workers,  # type: ignore[arg-type]
            use_gpu=bool(wanted.gpus_per_worker),
            resources_per_worker=wanted.per_worker(),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(run.root / "ray"),
            failure_config=FailureConfig(
                max_failures=_LOSSES_SURVIVED if wanted.at_least else _FAILURES_SURVIVED
            ),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(run.root / "ray", ignore_errors=True)
        give_back(run)


def give_back(run: RunFolder) -> None:
    """Free what the workers of a training hold whose starter was killed in a sweep.

    Ray would keep it reserved for them until the whole sweep ends.
    """
    path = run.root / _RESERVED
    reserved = read_json(path)
    if reserved is not None:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(reserved)))
    path.unlink(missing_ok=True)


def _give_back_all() -> None:
    """Free what a killed controller reserved for workers that had not begun, and so said nothing.

    Not in a sweep, whose other trials have theirs; where the cluster isn't this process's own, a
    helper of Ray's sees to it (see `_Trainer`).
    """
    if is_own() and not get_runtime_context().get_actor_id():
        for key, group in placement_group_table().items():
            if group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(key)))


def _told(what: str, error: Exception) -> TrainingError:
    """Of Ray's message, which may be a traceback: its last line, or that memory ran out."""
    text = str(error).strip()
    if "low on memory" not in text:
        return TrainingError(what, got=text.rpartition("\n")[2])
    do = f"lower {WORKERS}, or end what else takes memory; the same command goes on"
    used = re.search("Memory usage .*", text)
    return TrainingError("memory ran out: Ray ended a process", got=used and used[0], do=do)


def _same_for_all(run: RunFolder, rank: int, workers: int) -> RunFolder:
    """The run's folder for a worker of a job: what worker 0 goes on from, all do.

    Worker 0 may find a checkpoint on its machine that the store lacks, as after a network's
    failure; the others take it from the store, each in a folder of its own.
    """
    mirror = mirror_of(run)
    if mirror is None:
        return run
    if rank == 0:
        mirror.take_part()
        mirror.send()
    if workers > 1:
        torch.distributed.barrier()
    if rank == 0:
        return run
    own = RunFolder(state_dir() / "ranks" / str(rank) / run.root.name)
    shutil.rmtree(own.root, ignore_errors=True)
    mirror = mirror_of(own)
    assert mirror is not None
    mirror.bring()
    return own


def _work(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers does."""
    training, run = config["training"], RunFolder(Path(config["root"]))
    context = get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    run = _same_for_all(run, rank, workers)
    if (run.root / _FAILED).is_file():
        return
    held = get_current_placement_group()
    if rank == 0 and held is not None:
        write_json(run.root / _RESERVED, held.id.hex())
    try:
        bring_inputs()
        if first := config["first_weights"]:
            training = replace(training, init=first.here())
        if workers > 1:
            _wait_for_all()
        sums = _Sums() if workers > 1 else None
        sum_in_place = sums.in_place if sums else lambda tensor: None
        device = device_of(config["of_a_gpu"], get_device)
        node, is_first = context.get_node_rank(), context.get_local_rank() == 0
        with (
            sampling(rank, workers, node, is_first, sum_in_place, device) as of_machines,
            sending(mirror_of(run) if rank == 0 else None),
        ):
            world = World(
                rank,
                workers,
                sum_in_place,
                device,
                expect_s=sums.expect_s if sums else lambda median_s: None,
                micro_batch=micro_batch_wanted(),
                of_machines=of_machines,
            )
            until, judge_start = config["until"], config["judge_start"]
            run_training(training, run, world, ray_report, until, judge_start)
    except (_PeerLostError, RayError):
        raise  # a worker, a node or the controller is gone: tried again
    except Exception as error:
        # it would come again if tried again: the workers that Ray starts in place of these stop
        told = {"error": _ended_by(error), "traceback": traceback.format_exc()}
        write_json(run.root / _FAILED, told)
        if mirror := mirror_of(run):
            mirror.send_whole()
        if not isinstance(error, TrainingError):  # which all workers raise; others just one
            raise


def _wait_for_all() -> None:
    """One may fetch for long what another has: no limit is set before.

    Raises:
        _PeerLostError: one is gone.
    """
    try:
        torch.distributed.barrier()
    except RuntimeError as error:
        raise _PeerLostError(f"workers did not meet: {error}") from error


def _ended_by(error: Exception) -> str:
    """A line that says what to change."""
    if isinstance(error, GliotrailError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        do = f"set {MICRO_BATCH}=1, or a smaller train.patch_size or train.batch_size"
        return str(TrainingError("the GPU's memory ran out", got=error, do=do))
    do = "look at the run's traceback; it was not tried again"
    return str(TrainingError(type(error).__name__, got=error, do=do))


class _PeerLostError(RuntimeError):
    """Another worker is gone, or hangs: what all workers compute together failed."""


class _Sums:
    """Sums over all workers, each of which may take a limited time.

    Between steps that is a minute and ten times what a step usually takes, so that a worker that
    hangs is an error soon; before the first one, and around a validation, the limit for starts.
    """

    def __init__(self) -> None:
        self._limit_s = 0.0
        self.expect_s(None)

    def expect_s(self, median_s: float | None) -> None:
        """See `World`."""
        limit_s = _START_S if median_s is None else _LEAST_S + 10 * median_s
        # no message between workers, but each setting costs some: not for a tenth more or less
        if abs(limit_s - self._limit_s) > 0.1 * self._limit_s:
            self._limit_s = limit_s
            _set_pg_timeout(timedelta(seconds=limit_s))

    def in_place(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over all workers.

        Raises:
            _PeerLostError: one is gone, or the limit is passed.
        """
        try:
            torch.distributed.all_reduce(tensor)
        except RuntimeError as error:
            raise _PeerLostError(
                f"workers could not sum within {self._limit_s:.0f} s: {error}"
            ) from error
