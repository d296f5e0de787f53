"""Ray Train's side of a training: the workers, and the handling of their failures.

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
    """Without helper processes that take seconds to start and are not needed here.

    Ray's own two are for shards of Ray's datasets, and for placement groups that outlive their
    trainer on a cluster that outlives both.
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
        """No handler: Ray's own aborts without a checkpoint; see `runs.stop`."""


def fit_on_workers(
    training: Training,
    run: RunFolder,
    wanted: Resources,
    callbacks: Sequence[Any] = (),
    until: int | None = None,
) -> None:
    """Train on Ray Train's workers; a killed one is replaced, and all go on from the checkpoint.

    A killed controller of Ray Train is replaced, too, which Ray itself doesn't do.

    Args:
        callbacks: Ray Train's, called at each epoch's end.
        until: as in `run_training`.

    Raises:
        TrainingError: a worker's error, or processes that were killed again and again.
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
                if failed.is_file():  # a worker recorded its error
                    break
                raise _as_error("Ray's workers failed", error) from error
            except (RayActorError, OutOfMemoryError) as error:
                if not left:
                    raise _as_error("Ray's controller failed", error) from error
                _give_back_all()
    failure = read_json(failed)
    if failure is not None:
        # the run stores the traceback: see `RunFolder.end`
        raise TrainingError(failure["error"]) from RuntimeError(failure["traceback"])


def _fit(
    training: Training,
    run: RunFolder,
    wanted: Resources,
    callbacks: Sequence[Any],
    until: int | None,
) -> None:
    # Ray does nothing for a name that ended once; trainings resume from our own folder
    name = f"{run.root.name}-{time.time_ns()}"
    if wanted.at_least:
        # Ray counts on a lost machine for some seconds: as long it waits for that machine's place
        # before it looks again how many there are. Free places are given in milliseconds.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    trainer = _Trainer(
        _work,
        train_loop_config={
            "training": training,
            "root": str(run.root),
            "until": until,
            "of_a_gpu": wanted.gpus_per_worker,
            "first_weights": share(training.init) if training.init else None,
            # trials are compared epoch by epoch: all have the same start
            "judge_start": not callbacks,
        },
        torch_config=TorchConfig(backend=backend_of(wanted.gpus_per_worker)),
        scaling_config=ScalingConfig(
            # Ray's type stubs don't allow a span
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
    """Free the resources of a training's workers if the trial that started them was killed.

    Ray would keep them reserved until the whole sweep ends.
    """
    path = run.root / _RESERVED
    reserved = read_json(path)
    if reserved is not None:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(reserved)))
    path.unlink(missing_ok=True)


def _give_back_all() -> None:
    """Free what a killed controller reserved for workers that had not begun.

    Not in a sweep, whose other trials have their own; on another process's cluster, Ray's own
    helper does it (see `_Trainer`).
    """
    if is_own() and not get_runtime_context().get_actor_id():
        for key, group in placement_group_table().items():
            if group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(key)))


def _as_error(what: str, error: Exception) -> TrainingError:
    """The error from Ray's message, which may be a traceback: its last line, or lack of memory."""
    text = str(error).strip()
    if "low on memory" not in text:
        return TrainingError(what, got=text.rpartition("\n")[2])
    do = f"lower {WORKERS}, or end other programs; the same command goes on"
    used = re.search("Memory usage .*", text)
    return TrainingError("memory ran out: Ray ended a process", got=used and used[0], do=do)


def _same_for_all(run: RunFolder, rank: int, workers: int) -> RunFolder:
    """The run's folder for a worker of a job: all go on from the same checkpoint as worker 0.

    Worker 0 may find a checkpoint on its machine that the store lacks, for example after a network
    failure; the others take it from the store, each into a folder of its own.
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
    """The training on each of Ray Train's workers."""
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
        # it would happen again: the workers that Ray starts in place of these stop
        failure = {"error": _ended_by(error), "traceback": traceback.format_exc()}
        write_json(run.root / _FAILED, failure)
        if mirror := mirror_of(run):
            mirror.send_whole()
        if not isinstance(error, TrainingError):  # all workers raise that; other errors just one
            raise


def _wait_for_all() -> None:
    """Wait for all workers, without a limit: some may take long to fetch what others have.

    Raises:
        _PeerLostError: one is gone.
    """
    try:
        torch.distributed.barrier()
    except RuntimeError as error:
        raise _PeerLostError(f"workers did not meet: {error}") from error


def _ended_by(error: Exception) -> str:
    """The error in one line, with what to change."""
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

    Between steps the limit is a minute plus ten usual steps, so that a hanging worker is soon an
    error; before the first step, and around a validation, it is the limit for starts.
    """

    def __init__(self) -> None:
        self._limit_s = 0.0
        self.expect_s(None)

    def expect_s(self, median_s: float | None) -> None:
        """See `World`."""
        limit_s = _START_S if median_s is None else _LEAST_S + 10 * median_s
        # each setting costs time, though no message: not for a tenth more or less
        if abs(limit_s - self._limit_s) > 0.1 * self._limit_s:
            self._limit_s = limit_s
            _set_pg_timeout(timedelta(seconds=limit_s))

    def in_place(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over all workers.

        Raises:
            _PeerLostError: one is gone, or the limit is over.
        """
        try:
            torch.distributed.all_reduce(tensor)
        except RuntimeError as error:
            raise _PeerLostError(
                f"workers could not sum within {self._limit_s:.0f} s: {error}"
            ) from error
