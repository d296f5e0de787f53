"""Stage `sweep`: Ray Tune over learning rate and patch size; its winner feeds `train`.

Fair across patch sizes: a trial's budget is a number of voxels seen, and what is compared is the
Dice of whole validation scans, never a patch's. Test patients are not read.
"""

import csv
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from ray import tune

from gliotrail.distributed.cluster import cluster, cpus_here
from gliotrail.distributed.training import Training, describe, restore, run_training
from gliotrail.errors import GliotrailError, ParamsError, TrainingError
from gliotrail.files import replacing, write_json
from gliotrail.params import Params, format_size, parse_size
from gliotrail.places import state_dir
from gliotrail.progress import progress, say
from gliotrail.segmentation.loop import SCORE, World
from gliotrail.tracking.journal import RunFolder
from gliotrail.tracking.lineage import digest_of
from gliotrail.tracking.runs import Courier

EXPERIMENT: Final = "gliotrail-sweeps"


def sweep(
    params: Params,
    prepared: Path = Path("data/prepare"),
    patches: Path = Path("data/patch"),
    out: Path = Path("results/sweep"),
) -> None:
    """Run every trial that isn't finished yet; write `best.json` and `trials.csv`.

    Raises:
        ParamsError: a swept key that can't be swept, a size that isn't prepared.
        TrainingError: no trial came to its end.
    """
    trials = make_trials(params, prepared.absolute(), patches.absolute())
    for training in trials:
        training.check()
    runs = [training.folder() for training in trials]
    parent = _begin(params, trials, runs)
    courier = Courier([parent, *runs])
    try:
        waiting = [n for n, run in enumerate(runs) if not _finished(run)]
        say(f"sweep: {len(trials)} trials, {len(trials) - len(waiting)} of them finished before")
        if waiting:
            _run_trials([trials[n] for n in waiting], [runs[n] for n in waiting])
        table = [_row(training, run) for training, run in zip(trials, runs, strict=True)]
        best = _best(table)
        parent.end("FINISHED", "all trials ended", best)
    finally:
        late = courier.close()
        if late:
            say(f"not all of it is in MLflow yet ({late}); `gliotrail runs sync` delivers it later")
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        write_json(partial / "best.json", best)
        with (partial / "trials.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    say(f"sweep: best is {best['params']}, validation Dice {best['score']:.3f}")


def make_trials(params: Params, prepared: Path, patches: Path) -> list[Training]:
    """The grid's trainings, in the order of params.yaml.

    Raises:
        ParamsError: a key that is no number of a training's and not the patch size.
    """
    space = params.sweep.space
    for needed in ("learning_rate", "patch_size"):
        if needed not in space:
            raise ParamsError(f"sweep.space.{needed}: missing", do="give it one choice to fix it")
    base = Training(
        section=params.train,
        learning_rate=1.0,
        size_vox=(1, 1, 1),
        epochs=params.sweep.epochs,
        seed=params.sweep.seed,
        threshold=params.evaluate.threshold,
        prepared=prepared,
        patches=patches,
    )
    trials = []
    for values in itertools.product(*(choice.choice for choice in space.values())):
        trials.append(_with(base, dict(zip(space, values, strict=True))))
    return trials


def _with(base: Training, chosen: dict[str, Any]) -> Training:
    for key, value in chosen.items():
        if key == "patch_size":
            try:
                base = replace(base, size_vox=parse_size(value))
            except ValueError as error:
                raise ParamsError(f"sweep.space.patch_size: {error}") from None
        elif key == "learning_rate":
            base = replace(base, learning_rate=float(value))
        elif isinstance(getattr(base.section, key, None), int | float):
            base = replace(base, section=base.section.model_copy(update={key: value}))
        else:
            raise ParamsError(f"sweep.space.{key}", wanted="patch_size or a number of train's")
    return base


def _begin(params: Params, trials: Sequence[Training], runs: Sequence[RunFolder]) -> RunFolder:
    """The sweep's own run, and its trials' below it."""
    inputs = [training.inputs() for training in trials]
    parent = RunFolder(state_dir() / "runs" / f"sweep-{digest_of(inputs)}")
    told = describe(trials[0], EXPERIMENT, "sweep") | {
        "name": f"sweep of {' x '.join(params.sweep.space)}, {len(trials)} trials",
        "params": params.sweep.model_dump(mode="json"),
    }
    parent.begin(told)
    parent.reopen()
    for training, run in zip(trials, runs, strict=True):
        run.begin(describe(training, EXPERIMENT, "trial", parent.describe()["id"]))
    return parent


def _finished(run: RunFolder) -> bool:
    ended = run.ended()
    return ended is not None and ended["status"] == "FINISHED"


def _run_trials(trials: Sequence[Training], runs: Sequence[RunFolder]) -> None:
    """One trial a core, each the plain loop in its Tune worker; workers are used again."""
    cpus = cpus_here()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    space = {
        "trial": tune.grid_search(
            [{"training": t, "root": str(run.root)} for t, run in zip(trials, runs, strict=True)]
        )
    }
    with cluster(), progress(len(trials), "sweep", "trials") as advance:
        tuner = tune.Tuner(
            tune.with_resources(_trial, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=SCORE, mode="max", max_concurrent_trials=cpus, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{runs[0].root.name}",
                storage_path=str(state_dir() / "ray"),
                verbose=0,
                callbacks=[_Advance(advance)],
            ),
        )
        tuner.fit()


class _Advance(tune.Callback):
    """Moves the progress bar."""

    def __init__(self, advance: Any) -> None:
        self._advance = advance

    def on_trial_complete(self, *args: Any, **more: Any) -> None:
        self._advance(1)

    on_trial_error = on_trial_complete


def _trial(config: dict[str, Any]) -> None:
    """What a Tune worker does for one trial."""
    training, run = config["trial"]["training"], RunFolder(Path(config["trial"]["root"]))
    torch.set_num_threads(1)
    run.reopen()
    try:
        run_training(training, run, World(), lambda step, metrics: tune.report(dict(metrics)))
    except GliotrailError as error:
        run.end("FAILED", str(error))
        return
    state = restore(run)
    assert state is not None
    run.end("FINISHED", "trained to its budget", {"score": state.kept_score})


def _row(training: Training, run: RunFolder) -> dict[str, Any]:
    ended = run.ended() or {"status": "FAILED", "reason": "did not start", "summary": {}}
    return {
        "trial": run.root.name,
        "learning_rate": training.learning_rate,
        "patch_size": format_size(training.size_vox),
        "status": ended["status"],
        "score": ended["summary"].get("score"),
        "steps": training.plan().steps,
        "reason": "" if ended["status"] == "FINISHED" else ended["reason"],
    }


def _best(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    finished = [row for row in table if row["score"] is not None]
    if not finished:
        raise TrainingError("sweep: no trial came to its end", got=table[0]["reason"])
    best = max(finished, key=lambda row: float(row["score"]))
    return {
        "params": {key: best[key] for key in ("learning_rate", "patch_size")},
        "score": best["score"],
        "trial": best["trial"],
    }
