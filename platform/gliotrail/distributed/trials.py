"""Ray Tune's side of a sweep: each trial is the plain driver in a Tune worker, used again."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from ray import tune

from gliotrail.distributed.cluster import nodes, share_out, total
from gliotrail.distributed.driver import plan_of, result, run_training
from gliotrail.distributed.training import Training
from gliotrail.errors import GliotrailError
from gliotrail.places import state_dir
from gliotrail.progress import progress
from gliotrail.segmentation.loop import World
from gliotrail.tracking.journal import RunFolder

_FAILURES_SURVIVED: Final = 3


def run_trials(trials: Sequence[Training], runs: Sequence[RunFolder]) -> None:
    """Run trials on the connected cluster, as many at a time as it has GPUs, or else cores.

    Each run ends FINISHED or FAILED; one that did not was stopped, by Ctrl-C.
    """
    there = nodes()
    places = total(there, "GPU") or total(there, "CPU")
    wanted = share_out(there, min(len(trials), places))
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    name = f"sweep-{time.time_ns()}"
    configs = [{"training": t, "root": str(r.root)} for t, r in zip(trials, runs, strict=True)]
    with progress(len(trials), "sweep", "trials") as advance:
        tuner = tune.Tuner(
            tune.with_resources(_trial, {k.lower(): n for k, n in wanted.per_worker().items()}),
            param_space={"trial": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(max_concurrent_trials=wanted.workers, reuse_actors=True),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(state_dir() / "ray"),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_FAILURES_SURVIVED),
                callbacks=[_Advance(advance)],
            ),
        )
        try:
            outcomes = tuner.fit()
        finally:
            shutil.rmtree(state_dir() / "ray" / name, ignore_errors=True)
    for n in range(len(outcomes)):
        error, config = outcomes[n].error, outcomes[n].config
        if error is not None and config is not None:
            run = RunFolder(Path(config["trial"]["root"]))
            run.end("FAILED", str(error).strip().rpartition("\n")[2])


class _Advance(tune.Callback):
    """Moves the progress bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def on_trial_complete(self, *args: Any, **more: Any) -> None:
        self._advance(1)

    on_trial_error = on_trial_complete


def _trial(config: dict[str, Any]) -> None:
    """What a Tune worker does for one trial."""
    training, run = config["trial"]["training"], RunFolder(Path(config["trial"]["root"]))
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        run_training(training, run, world, lambda step, metrics: tune.report(dict(metrics)))
        state, _ = result(training, run)
    except GliotrailError as error:  # it would come again if tried again
        run.end("FAILED", str(error))
    else:
        summary = {"score": state.kept_score, "steps": plan_of(training).steps}
        run.end("FINISHED", "trained to its budget", summary)
