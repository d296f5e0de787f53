"""Lightning: a Logger and a Callback for one process, within `gliotrail.track`.

    with gliotrail.track("my-study", inputs={"params": params}) as run:
        trainer = Trainer(logger=RunLogger(run), callbacks=[RunCheckpoints(run)], ...)
        trainer.fit(model, data, ckpt_path=checkpoint_of(run))

A checkpoint is made at each epoch's end, where Lightning can resume exactly.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger

from gliotrail.errors import TrackingError
from gliotrail.integrations.numbers import numbers_of
from gliotrail.runs.stop import stop_if_asked
from gliotrail.runs.tracked_run import TrackedRun

_FILE: Final = "lightning.ckpt"


def checkpoint_of(run: TrackedRun) -> Path | None:
    """The argument of `Trainer.fit(..., ckpt_path=...)`; None at the first start."""
    return run.checkpoint / _FILE if run.checkpoint else None


class RunLogger(Logger):
    """Reports each number at Lightning's own step. Hyperparameters are the run's inputs already."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__()
        self._run, self._last = run, -1

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self._run.folder.describe()["experiment"])

    @property
    def version(self) -> str:
        """The run's own id."""
        return self._run.id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See Lightning. Without a step, the last one is meant."""
        self._last = self._last if step is None else step
        self._run.report(self._last, numbers_of(metrics))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """See Lightning."""


class RunCheckpoints(Callback):
    """A checkpoint at each epoch's end; SIGTERM and `gliotrail runs stop` end the fit."""

    def __init__(self, run: TrackedRun) -> None:
        self._run, self._step = run, -1
        self._coming = run.folder.root / _FILE

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse several processes.

        Raises:
            TrackingError: the Trainer has more than one.
        """
        if trainer.world_size > 1:
            do = "use one device"
            got = f"{trainer.world_size}"
            raise TrackingError("Trainer", wanted="one process", got=got, do=do)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning logs the epoch's numbers after this, so the checkpoint is made final later."""
        trainer.save_checkpoint(self._coming)
        self._step = (
            trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        )  # the last that was taken

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch before is complete."""
        self._make_final()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last epoch is complete."""
        self._make_final()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Lightning ends at SIGTERM by itself: that is no failure."""
        stop_if_asked(self._run.folder)

    def _make_final(self) -> None:
        if self._coming.exists():
            self._run.report(
                self._step, {}, lambda folder: self._coming.rename(folder / _FILE), now=True
            )
