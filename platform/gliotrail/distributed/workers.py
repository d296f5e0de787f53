"""Ray Train's side of a training: the workers, and what becomes of their failures.

Nothing here imports MLflow: a worker is ready seconds sooner without it.
"""

import json
import time
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train import report as ray_report
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from gliotrail.distributed.cluster import Resources
from gliotrail.distributed.training import Training, run_training
from gliotrail.errors import GliotrailError, TrainingError
from gliotrail.files import write_json
from gliotrail.places import state_dir
from gliotrail.segmentation.loop import World
from gliotrail.tracking.journal import RunFolder

_FAILURES_SURVIVED: Final = 3
_FAILED: Final = "failed.json"


def fit_on_workers(training: Training, run: RunFolder, wanted: Resources) -> None:
    """Train on Ray Train's workers; a killed one is replaced, and all go on from the checkpoint.

    Raises:
        GliotrailError: what a worker raised.
    """
    (run.root / _FAILED).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"training": training, "root": str(run.root)},
        torch_config=TorchConfig(backend="nccl" if wanted.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=wanted.workers,
            use_gpu=bool(wanted.gpus_per_worker),
            resources_per_worker=wanted.per_worker(),
        ),
        run_config=RunConfig(
            # Ray does nothing for a name that ended once; what resumes is our own folder
            name=f"{run.root.name}-{time.time_ns()}",
            storage_path=str(state_dir() / "ray"),
            failure_config=FailureConfig(max_failures=_FAILURES_SURVIVED),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        for cause in getattr(error, "worker_failures", {}).values():
            if isinstance(cause, GliotrailError):
                raise cause from None
        raise TrainingError("Ray's workers failed", got=str(error)) from error
    if (run.root / _FAILED).is_file():
        raise TrainingError(json.loads((run.root / _FAILED).read_text())["error"])


def _work(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers does."""
    training, run = config["training"], RunFolder(Path(config["root"]))
    context = get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    world = World(
        rank,
        workers,
        sum_in_place=torch.distributed.all_reduce if workers > 1 else lambda tensor: None,
        device=get_device(),
    )
    try:
        run_training(training, run, world, lambda step, metrics: ray_report(dict(metrics)))
    except TrainingError as error:
        # the same on every worker, and again if tried again: nothing for Ray to mend
        if rank == 0:
            write_json(run.root / _FAILED, {"error": str(error)})
