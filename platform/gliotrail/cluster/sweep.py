"""Stage `sweep`: Ray Tune over `train`'s keys; the winner feeds `train`.

Fair across patch sizes: a trial's budget is a number of voxels seen, and trials are compared by the
Dice of whole validation scans, never of patches. Test patients are not read.
"""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from gliotrail.cluster.autoscaling import wait_until_free, when_there_are
from gliotrail.cluster.connection import check_shares, cluster
from gliotrail.cluster.job_inputs import mirror_of
from gliotrail.errors import ParamsError, TrainingError
from gliotrail.imaging.split import read_split
from gliotrail.param_types import FROM_SWEEP, format_size
from gliotrail.params import Params, Train
from gliotrail.progress import say
from gliotrail.runs.lineage import Origin, describe
from gliotrail.runs.stop import asked_by, stop_if_asked
from gliotrail.search.halving import Halving
from gliotrail.search.outcome import artifacts, best_of, figures, row_of, show, summary, write
from gliotrail.search.population import Population
from gliotrail.search.proposals import Proposals, Trial
from gliotrail.tracking.delivery_thread import Hold, tracked
from gliotrail.training.inputs import VALIDATION_DO, data_paths

EXPERIMENT: Final = "gliotrail-sweeps"


def sweep(
    params: Params,
    prepared: Path = Path("data/prepare"),
    patches: Path = Path("data/patch"),
    out: Path = Path("results/sweep"),
) -> None:
    """Run every waiting trial; write `best.json`, `trials.csv` and `decisions.csv`.

    Raises:
        ParamsError: no validation data; a swept key that can't be swept, a size that isn't
            prepared or can't be halved.
        TrainingError: no trial finished.
        Stopped: by Ctrl-C, SIGTERM or `gliotrail runs stop`.
    """
    if not read_split(prepared).validation:
        asked = [f"train.{k}" for k in Train.model_fields if getattr(params.train, k) == FROM_SWEEP]
        if asked:
            do = f"{VALIDATION_DO}, or give {' and '.join(asked)} a value"
            raise ParamsError("sweep: no validation data to compare trials by", do=do)
        say("sweep: no validation data, and train takes nothing from a sweep: no trial is run")
        write(out, [], {"params": {}}, b"")
        return
    proposals = Proposals(params, prepared, patches)
    parent, trials = proposals.parent, proposals.trials
    for run in (parent, *(trial.run for trial in trials)):
        if mirror := mirror_of(run):
            mirror.bring()
    halving = Halving(params.sweep, parent.root / "decisions.csv")
    population = None
    if params.sweep.algorithm == "pbt":
        population = Population(proposals, parent.root / "population.csv")
    finished = sum(trial.run.is_finished() for trial in trials)
    say(f"sweep: {proposals.total} trials, {finished} of them finished before")
    if not proposals.is_reproducible:
        say("sweep: the values tried, or early stops, depend on timing; see decisions.csv")
    left = len(trials) < proposals.total or any(_waits(trial, halving) for trial in trials)
    with tracked(parent, [trial.run for trial in trials], goes_on=left) as hold:
        if left or not parent.is_finished():
            _run(params, proposals, halving, population, hold)
        if population:
            trials = [population.member(trial) for trial in trials]
        decisions = (population or halving).table()
        rows = [row_of(trial, halving) for trial in trials]
        if not parent.is_finished():
            title = parent.describe()["name"]
            for name, content in artifacts(
                params.sweep, title, rows, trials, halving, decisions
            ).items():
                parent.attach(name, content)
        best = best_of(rows, trials)
        if population:
            best["schedule"] = population.schedule(best["trial"])
        if not parent.is_finished():
            found = best | figures(best, trials, halving)
            parent.end("FINISHED", summary(rows, best), found)
        if params.sweep.keep == "winner":
            for row, trial in zip(rows, trials, strict=True):
                if row["status"] != "FAILED" and trial.name != best["trial"]:
                    trial.run.drop_states()
    write(out, rows, best, decisions)
    show(rows)
    say(f"sweep: {summary(rows, best)}")


def _waits(trial: Trial, halving: Halving) -> bool:
    return not trial.run.is_finished() and halving.stopped(trial) is None


def _run(
    params: Params,
    proposals: Proposals,
    halving: Halving,
    population: Population | None,
    hold: Hold,
) -> None:
    """Run the waiting trials, each in a run below the sweep's own."""
    parent = proposals.parent
    with cluster() as connected:
        # seconds of imports, while Ray starts
        from gliotrail.cluster.gpus import decide, gpus_wanted
        from gliotrail.cluster.trials import (
            TRIAL_WORKERS,
            bundles,
            end_if_stopped,
            resources,
            run_trials,
            trial_workers,
        )
        from gliotrail.search.live_table import watching_sweep
        from gliotrail.training.description import describe_training
        from gliotrail.training.preflight import check

        check(proposals.probes)
        smallest = min(training.section.batch_size for training in proposals.probes)
        check_shares(trial_workers(), None, smallest, TRIAL_WORKERS)
        gpus = gpus_wanted(trial_workers(), TRIAL_WORKERS)
        origin = Origin.now()
        described = _describe(params, proposals, origin)
        connected()
        of_a_gpu = decide(gpus, "sweep", lambda: stop_if_asked(parent))
        wanted, at_once = when_there_are(
            lambda there: resources(there, proposals.total, of_a_gpu),
            bundles(of_a_gpu),
            lambda: stop_if_asked(parent),
        )
        wait_until_free(wanted, "a trial", lambda: stop_if_asked(parent))
        if not parent.has_begun():
            parent.begin(described)
        parent.reopen()
        above = parent.describe()["id"]

        def waiting() -> Iterator[Trial | None]:
            if population:
                yield from (part and begun(part) for part in population.parts())
                return
            known = list(proposals.trials)
            for trial in known:
                if trial.run.is_finished():
                    halving.note_finished(trial)
                end_if_stopped(trial, halving)
            yield from (begun(trial) for trial in known if _waits(trial, halving))
            if proposals.asks:
                for trial in proposals.ask():
                    if trial.run.is_finished():
                        halving.note_finished(trial)
                    else:
                        hold(trial.run)
                        yield begun(trial)

        def begun(trial: Trial) -> Trial:
            if not trial.run.has_begun():
                of = describe_training(trial.training, origin, EXPERIMENT, "trial", above)
                trial.run.begin(of | {"name": trial.label})
            trial.run.reopen()
            if mirror := mirror_of(trial.run):
                mirror.begin()
            return trial

        stop_if_asked(parent)
        going_on = takewhile(lambda _: asked_by(parent) is None, waiting())
        came_back = population.came_back if population else lambda _: None
        parts = proposals.total * (params.sweep.epochs if population else 1)
        with watching_sweep(proposals, halving):
            run_trials(going_on, parts, wanted, at_once, halving, came_back)
    stop_if_asked(parent)
    ended = sum(trial.run.ended() is not None for trial in proposals.trials)
    if ended < proposals.total:
        got = f"{proposals.total - ended} of {proposals.total} trials unfinished"
        raise TrainingError("the sweep was stopped", got=got, do="run it again: it goes on")


def _describe(params: Params, proposals: Proposals, origin: Origin) -> dict[str, Any]:
    sizes = dict.fromkeys(format_size(training.size_vox) for training in proposals.probes)
    described = describe(
        origin,
        experiment=EXPERIMENT,
        kind="sweep",
        name=f"sweep of {' x '.join(params.sweep.space)}, {proposals.total} trials",
        params=params.sweep.model_dump(mode="json", exclude_none=True),
        inputs=[training.inputs() for training in proposals.probes],
        data=data_paths(*sizes),
    )
    described["tags"]["gliotrail.reproducible"] = str(proposals.is_reproducible).lower()
    return described
