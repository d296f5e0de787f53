"""Hugging Face's Trainer: a callback for one process, within `gliotrail.track`.

    with gliotrail.track("my-study", inputs={"params": params}) as run:
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[TrackRun(run)])
        trainer.train(resume_from_checkpoint=checkpoint_of(run))

The Trainer's own checkpoints, made when its arguments say so, become the run's: each is copied, so
that a run never resumes from one that a kill left half written.
"""

import shutil
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gliotrail.errors import TrackingError
from gliotrail.integrations.numbers import numbers_of
from gliotrail.runs.stop import asked_by, stop_if_asked
from gliotrail.runs.tracked_run import TrackedRun

_FOLDER: Final = "trainer"
_AT_THE_END: Final = "train_runtime"


def checkpoint_of(run: TrackedRun) -> str | None:
    """The argument of `Trainer.train(resume_from_checkpoint=...)`; None at the first start."""
    return str(run.checkpoint / _FOLDER) if run.checkpoint else None


class TrackRun(TrainerCallback):
    """Reports each number at the Trainer's `global_step`; its final ones are the run's summary."""

    def __init__(self, run: TrackedRun) -> None:
        self._run, self._closed = run, run.last_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Refuse several processes.

        Raises:
            TrackingError: there is more than one.
        """
        if args.world_size > 1:
            do = "use one process"
            raise TrackingError("Trainer", wanted="one process", got=f"{args.world_size}", do=do)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A run that is asked to stop makes a checkpoint first."""
        if asked_by(self._run.folder) is not None:
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """See transformers."""
        numbers = numbers_of(logs or {})
        if _AT_THE_END in numbers or state.global_step <= self._closed:
            self._run.summary |= numbers
        else:
            self._run.report(state.global_step, numbers)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The Trainer logs and evaluates before it saves: the step is whole."""
        made = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        save = lambda folder: shutil.copytree(made, folder / _FOLDER)  # noqa: E731
        self._run.report(state.global_step, {}, save, now=True)
        self._closed = state.global_step
        stop_if_asked(self._run.folder)
