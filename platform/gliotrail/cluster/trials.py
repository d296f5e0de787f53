"""Ray Tune's side of a sweep: each trial is the plain driver in a reused Tune worker."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from gliotrail.cluster.connection import (
    GPUS,
    SETTINGS,
    Node,
    Resources,
    fitting,
    share_out,
    total,
    whole_number,
)
from gliotrail.cluster.gpus import device_of, micro_batch_wanted
from gliotrail.cluster.job_inputs import bring_inputs, mirror_of
from gliotrail.cluster.node_metrics import sampling
from gliotrail.cluster.shared_files import share
from gliotrail.cluster.workers import fit_on_workers, give_back
from gliotrail.errors import ClusterError, GliotrailError
from gliotrail.paths import state_dir
from gliotrail.runs.mirror import Mirror, sending, telling_of_stops
from gliotrail.runs.stop import asked_by, forget, note
from gliotrail.search.halving import Halving
from gliotrail.search.proposals import Trial
from gliotrail.segmentation.loop import SCORE, World
from gliotrail.training.driver import result, run_training

TRIAL_WORKERS: Final = "GLIOTRAIL_TRIAL_WORKERS"
TRIAL_CPUS: Final = "GLIOTRAIL_TRIAL_CPUS"
CONCURRENT: Final = "GLIOTRAIL_CONCURRENT_TRIALS"
_FAILURES_SURVIVED: Final = 3


def resources(there: Sequence[Node], trials: int, of_a_gpu: float) -> tuple[Resources, int]:
    """A trial's resources, and how many run at a time: as many as there are GPUs, or else cores.

    GLIOTRAIL_TRIAL_WORKERS, GLIOTRAIL_TRIAL_CPUS and GLIOTRAIL_CONCURRENT_TRIALS override it.

    Args:
        there: the cluster's machines.
        of_a_gpu: each worker's share of a GPU.

    Raises:
        ClusterError: the cluster, as it is now, can't give so much.
        ParamsError: a variable that is not such a number.
    """
    workers, cpus = trial_workers(), whole_number(TRIAL_CPUS)
    wanted = Resources(workers, cpus or 1, of_a_gpu)
    at_once = min(trials, fitting(there, wanted) // workers, whole_number(CONCURRENT) or trials)
    if not at_once:
        machines = [
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in there
        ]
        on_cpus = f", or set {GPUS}=0 for CPUs" if of_a_gpu > total(there, "GPU") else ""
        raise ClusterError(
            "a trial can never start",
            wanted=wanted.describe(),
            got=f"machines of {' / '.join(dict.fromkeys(machines)) or 'nothing'}",
            do=f"lower {TRIAL_WORKERS if workers > 1 else TRIAL_CPUS}{on_cpus}",
        )
    if cpus is None:
        each = share_out(there, at_once * workers, of_a_gpu=of_a_gpu)
        wanted = replace(each, workers=workers)
    return wanted, at_once


def trial_workers() -> int:
    """GLIOTRAIL_TRIAL_WORKERS, or one.

    Raises:
        ParamsError: as `whole_number`.
    """
    return whole_number(TRIAL_WORKERS) or 1


def bundles(of_a_gpu: float) -> list[dict[str, float]]:
    """The smallest request for a trial, to a cluster that has too little."""
    workers = trial_workers()
    return [Resources(workers, whole_number(TRIAL_CPUS) or 1, of_a_gpu).per_worker()] * workers


def run_trials(
    waiting: Iterator[Trial | None],
    number: int,
    wanted: Resources,
    at_once: int,
    halving: Halving,
    came_back: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Run trials on the connected cluster, each taken from `waiting` when there is room for it.

    `waiting` yields None if there is none yet.

    Each run ends FINISHED, FAILED, or, stopped early, KILLED; a run without an end was stopped with
    the whole sweep.

    Args:
        number: how many there are at most.
        wanted: each trial's resources; with several workers, its own process holds nothing more.
        at_once: how many run at a time.
        halving: decides which are stopped early.
        came_back: called with each trial whose worker is free again.
    """
    first = next(waiting, None)
    if first is None:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # see `runs.stop`
    # a trial that fails or is stopped before its first epoch's end has no number to report
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # nobody reads their files
    # Tune warns that those files are missing; the trials' records are in their runs' folders
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    name = f"sweep-{time.time_ns()}"
    search = _Waiting(chain([first], waiting), wanted, halving, came_back)
    tuner = tune.Tuner(
        tune.with_resources(_trial, _held(wanted)),
        tune_config=tune.TuneConfig(
            num_samples=number,
            search_alg=search,
            scheduler=_Scheduler(search, halving),
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(state_dir() / "ray"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=_FAILURES_SURVIVED),
        ),
    )
    try:
        with telling_of_stops(search.mirrors.values()):
            outcomes = tuner.fit()
    finally:
        shutil.rmtree(state_dir() / "ray" / name, ignore_errors=True)
    for n in range(len(outcomes)):
        error, config = outcomes[n].error, outcomes[n].config
        if error is not None and config is not None:
            trial, reason = config["trial"], str(error).strip().rpartition("\n")[2]
            trial.run.end("FAILED", reason, trial.seen(), error=error)


def _held(wanted: Resources) -> dict[str, float]:
    """A trial's own process's resources; if it only waits for workers, a byte, as Tune asks."""
    if wanted.workers > 1:
        return {"cpu": 0, "memory": 1}
    return {name.lower(): n for name, n in wanted.per_worker().items()}


class _Waiting(Searcher):
    """Hands Tune the waiting trials, one by one, and ends those that were stopped early."""

    def __init__(
        self,
        waiting: Iterator[Trial | None],
        wanted: Resources,
        halving: Halving,
        came_back: Callable[[Trial], None],
    ) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._waiting, self._halving = waiting, halving
        self.wanted, self._came_back = wanted, came_back
        self.trials: dict[str, Trial] = {}
        """The trials by Tune's own name."""
        self.mirrors: dict[str, Mirror] = {}
        """The running ones, by the same name."""

    def suggest(self, trial_id: str) -> Any:
        trial = next(self._waiting, Searcher.FINISHED)
        if not isinstance(trial, Trial):
            return trial
        self.trials[trial_id] = trial
        if mirror := mirror_of(trial.run):
            self.mirrors[trial_id] = mirror
        retell = bool(self._halving.rungs(trial.number)[1])
        first = share(trial.training.init) if trial.training.init else None
        return {"trial": trial, "wanted": self.wanted, "retell": retell, "first_weights": first}

    def on_trial_complete(self, trial_id: str, *args: Any, **more: Any) -> None:
        trial = self.trials[trial_id]
        give_back(trial.run)
        if mirror := self.mirrors.pop(trial_id, None):
            mirror.bring()
        end_if_stopped(trial, self._halving)
        self._came_back(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: sweeps resume from our own folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves itself, to be resumed


class _Scheduler(FIFOScheduler):
    """Stops a trial at an epoch's end where `Halving` says so."""

    def __init__(self, search: _Waiting, halving: Halving) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._search, self._halving = search, halving

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        ours, epoch = self._search.trials[trial.trial_id], result.get("epoch")
        if epoch is None or self._halving.goes_on(ours, epoch, result[SCORE]):
            return self.CONTINUE
        if self._search.wanted.workers == 1:
            return self.STOP
        # its workers stop by themselves: killed, they would leave their resources reserved
        note(ours.run, "the sweep")
        return self.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as above


def end_if_stopped(trial: Trial, halving: Halving) -> None:
    """Record that a trial was stopped early: its run ends KILLED, with the reason."""
    decision = halving.stopped(trial)
    if decision is not None and trial.run.ended() is None:
        summary = {"score": decision.value} | trial.seen()
        trial.run.end("KILLED", halving.reason(decision), summary)
        forget(trial.run)


def _trial(config: dict[str, Any]) -> None:
    """Run one trial on a Tune worker: train, or wait for the trial's own workers."""
    trial: Trial = config["trial"]
    training, run = trial.training, trial.run
    mirror = mirror_of(run)
    if mirror:
        mirror.take_part()
    if config["retell"]:  # an earlier attempt's last report may be lost
        for epoch, score in trial.by_epoch().items():
            tune.report({SCORE: score, "epoch": epoch})
    try:
        if first := config["first_weights"]:
            training = replace(training, init=first.here())
        if config["wanted"].workers > 1:
            os.environ.update(SETTINGS | os.environ)
            callback = TuneReportCallback()
            fit_on_workers(training, run, config["wanted"], [callback], trial.until)
        else:
            bring_inputs()
            share = config["wanted"].gpus_per_worker
            device = device_of(share)
            if device.type == "cuda" and 0 < share < 1:  # the rest is for other trials
                torch.cuda.set_per_process_memory_fraction(share)
            alone = sampling(0, 1, 0, True, lambda tensor: None, device)
            with alone as of_machines, sending(mirror):
                micro_batch = micro_batch_wanted()
                world = World(device=device, micro_batch=micro_batch, of_machines=of_machines)
                run_training(training, run, world, tune.report, trial.until)
        if trial.until is not None and trial.until < training.section.epochs:
            return
        state, _ = result(training, run)
    except GliotrailError as error:  # it would happen again
        if asked_by(run) is None:  # else it goes on with the sweep
            run.end("FAILED", str(error), trial.seen())
    else:
        summary = {"score": state.kept_score} | trial.seen()
        run.end("FINISHED", trial.reason, summary)
    finally:
        if mirror:
            mirror.send_whole()
