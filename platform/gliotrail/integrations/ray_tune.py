"""Ray Tune: a callback that makes each trial a run below the sweep's own.

`ray.tune.report` stays as it is. A trial's points become final with its checkpoints, from which
Tune resumes, or, if it makes none, at its end.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final

from ray.tune import Callback
from ray.tune.result import AUTO_RESULT_KEYS

from gliotrail.errors import TrackingError
from gliotrail.integrations.numbers import numbers_of, step_of
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import OWN_LOOP, Origin, as_plain, describe, digest_of
from gliotrail.runs.tracked_run import TrackedRun
from gliotrail.tracking.delivery_thread import Hold
from gliotrail.tracking.track import begun

_NEVER_S: Final = float("inf")
_OF_TUNE: Final = (*AUTO_RESULT_KEYS, "done", "should_checkpoint", "__duplicate__")


class TrialRuns(Callback):
    """For `ray.tune.RunConfig(callbacks=[...])`, within `tracked_sweep`.

    Tune pickles it with the sweep and restores it, so everything about its process is kept outside
    of it, in `_SWEEPS`.
    """

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See Ray."""
        if "__duplicate__" not in result:
            _sweep().note(trial, result)

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any
    ) -> None:
        """See Ray: called before Tune itself writes the checkpoint down."""
        _sweep().run_of(trial).make_final()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See Ray: also for a trial that a scheduler stopped."""
        _sweep().end(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See Ray: when it is not tried again."""
        _sweep().end(trial, str(getattr(trial, "error_file", None) or "its worker failed"))


@contextmanager
def tracked_sweep(
    experiment: str, *, inputs: Mapping[str, Any], step: str = "step", name: str | None = None
) -> Iterator[TrialRuns]:
    """Track what the block does with a Tuner as a sweep that is identified by its inputs.

    Its trials are children, identified by Tune's own ids. `Tuner.restore` keeps these: a restored
    sweep goes on in the same runs.

    Args:
        step: the key under which trials report their own count of steps.
        name: of the sweep's run in MLflow.

    Yields:
        the callback for `ray.tune.RunConfig`. A restored Tuner has it already.

    Raises:
        TrackingError: a report without a step; as `gliotrail.track`.
    """
    with begun(experiment, inputs, name) as (folder, hold):
        _SWEEPS.append(_Sweep(folder, hold, experiment, step))
        try:
            yield TrialRuns()
            if not folder.is_finished():
                with closing(TrackedRun(folder)) as parent:
                    parent.finish()
        finally:
            _SWEEPS.pop().close()


class _Sweep:
    """A sweep's trials in this process."""

    def __init__(self, folder: RunFolder, hold: Hold, experiment: str, step: str) -> None:
        self._folder, self._hold, self._experiment, self._step = folder, hold, experiment, step
        self._origin: Origin | None = None
        self.runs: dict[str, _TrialRun] = {}

    def run_of(self, trial: Any) -> "_TrialRun":
        """The trial's run, begun if it is new."""
        number = str(trial.trial_id)
        if number not in self.runs:
            identity = {"sweep": self._folder.root.name, "trial": number}
            folder = RunFolder(self._folder.root.parent / digest_of(identity))
            self._hold(folder)
            if not folder.has_begun():
                self._origin = self._origin or Origin.now(tell=False)
                above = str(self._folder.describe()["id"])
                folder.begin(
                    describe(
                        self._origin,
                        experiment=self._experiment,
                        kind=OWN_LOOP,
                        name=str(trial),
                        params=as_plain(trial.config),
                        inputs=identity,
                        data=[],
                        parent=above,
                    )
                )
            if not folder.is_finished():
                folder.reopen()
            self.runs[number] = _TrialRun(folder)
        return self.runs[number]

    def note(self, trial: Any, result: Mapping[str, Any]) -> None:
        """One report."""
        step = step_of(result, self._step)
        self.run_of(trial).note(step, numbers_of(result, [*_OF_TUNE, self._step]))

    def end(self, trial: Any, error: str | None) -> None:
        """The trial is over."""
        self.run_of(trial).end(error)
        del self.runs[str(trial.trial_id)]

    def close(self) -> None:
        """Close all journals. Unfinished trials are KILLED with the sweep, or restored later."""
        for run in self.runs.values():
            run.close()


class _TrialRun:
    """One trial's run, through its attempts."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._last = folder, -1
        self._run = TrackedRun(folder, every_s=_NEVER_S)

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record a step; one that is recorded already is repeated by a resumed trial."""
        if step <= self._last:
            self._run.close()
            self._run = TrackedRun(self._folder, every_s=_NEVER_S)
        self._last = step
        self._run.report(step, numbers)

    def make_final(self) -> None:
        """Make final what was recorded."""
        self._run.make_final()

    def end(self, error: str | None) -> None:
        """FINISHED, or FAILED with what is known."""
        if error is None:
            self._run.finish()
        elif not self._folder.is_finished():
            self._run.make_final()
            self._folder.end("FAILED", error)
        self.close()

    def close(self) -> None:
        """Close the journal."""
        self._run.close()


_SWEEPS: Final[list[_Sweep]] = []


def _sweep() -> _Sweep:
    if not _SWEEPS:
        do = "call the Tuner's fit in a block of tracked_sweep"
        raise TrackingError("trial", wanted="a sweep that is tracked", got="none", do=do)
    return _SWEEPS[-1]
