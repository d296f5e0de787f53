"""Ray Train: `fit(trainer, ...)` in place of `trainer.fit()`; `ray.train.report` stays as it is.

A callback in Ray Train's controller receives the reports of all workers. Points become final with
Ray's next checkpoint. Ray records that checkpoint before it calls back; if the controller is killed
in between, its metrics are read from Ray's record at the next start.
"""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from ray.train import Checkpoint, Result, TrainingFailedError, UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from gliotrail.integrations.numbers import numbers_of, step_of
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.stop import stop_if_asked
from gliotrail.runs.tracked_run import TrackedRun
from gliotrail.tracking.track import begun

_NEVER_S: Final = float("inf")
_UNNAMED: Final = "ray_train_run-"
"""The beginning of the names that Ray gives to runs without one."""


def fit(
    trainer: DataParallelTrainer,
    experiment: str,
    *,
    inputs: Mapping[str, Any],
    step: str = "step",
    all_ranks: bool = False,
    name: str | None = None,
) -> Result:
    """Train, tracked as one run that is identified by its inputs; see `gliotrail.track`.

    If the workers, the controller or this process is killed, the same call resumes the training.
    A trainer whose RunConfig has no name gets the run's, so that Ray finds its checkpoints again.

    Args:
        trainer: such as a TorchTrainer. Its loop loads `ray.train.get_checkpoint()`.
        step: the key under which the loop reports its own count of steps.
        all_ranks: whether the other ranks' metrics are recorded, too, as `rank_1/loss`; otherwise
            only rank 0's. If the controller is killed during a report, only rank 0's are kept.
        name: of the run in MLflow.

    Raises:
        ray.train.TrainingFailedError: as Ray has it; the run is FAILED.
        TrackingError: a report without a step; as `gliotrail.track`.
    """
    config = trainer.run_config
    with begun(experiment, inputs, name) as (folder, _):
        if str(config.name).startswith(_UNNAMED):
            config.name = folder.root.name
        place = f"{str(config.storage_path).rstrip('/')}/{config.name}"
        if folder.is_finished():
            return Result.from_path(place, config.storage_filesystem)
        _catch_up(folder, place, config.storage_filesystem, step)
        heard = _Reports(folder.root, step, all_ranks)
        config.callbacks = [*(config.callbacks or ()), heard]  # type: ignore[list-item]
        try:
            result = trainer.fit()
        except TrainingFailedError:
            stop_if_asked(folder)
            raise
        with closing(TrackedRun(folder, every_s=_NEVER_S)) as last:
            last.adopt()  # what came without a checkpoint
            last.finish()
        return result


def _catch_up(folder: RunFolder, place: str, filesystem: Any, step: str) -> None:
    """Make the points final that led to the checkpoint from which Ray resumes."""
    try:
        latest = Result.from_path(place, filesystem).metrics
    except RuntimeError:  # it never began
        return
    if not latest:
        return
    reached = step_of(latest, step)
    with closing(TrackedRun(folder, every_s=_NEVER_S)) as run:
        run.adopt(upto=reached)
        run.report(reached, numbers_of(latest, [step]))
        run.make_final()


class _Reports(UserCallback):
    """Runs in Ray Train's controller: records what workers report."""

    def __init__(self, root: Path, step: str, all_ranks: bool) -> None:
        self._root, self._step, self._all_ranks = root, step, all_ranks
        self._run: TrackedRun | None = None
        self._last = -1

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """See Ray."""
        step = step_of(metrics[0], self._step)
        if self._run is None or step <= self._last:  # workers that go on from a checkpoint
            self.close()
            self._run = TrackedRun(RunFolder(self._root), every_s=_NEVER_S)
        self._last = step
        numbers = numbers_of(metrics[0], [self._step])
        if self._all_ranks:
            for rank, of in enumerate(metrics[1:], 1):
                more = numbers_of(of, [self._step])
                numbers |= {f"rank_{rank}/{key}": number for key, number in more.items()}
        self._run.report(step, numbers)
        if checkpoint is not None:
            self._run.make_final()
            stop_if_asked(self._run.folder)

    def close(self) -> None:
        """Close the journal."""
        if self._run is not None:
            self._run.close()
            self._run = None
