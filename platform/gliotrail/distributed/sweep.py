"""Stage `sweep`: Ray Tune over learning rate and patch size; its winner feeds `train`.

Fair across patch sizes: a trial's budget is a number of voxels seen, and what is compared is the
Dice of whole validation scans, never a patch's. Test patients are not read.
"""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gliotrail.distributed.cluster import cluster
from gliotrail.distributed.training import Training, data_paths, with_changes
from gliotrail.errors import ParamsError, TrainingError
from gliotrail.files import replacing, write_json
from gliotrail.params import Params
from gliotrail.places import state_dir
from gliotrail.progress import say
from gliotrail.tracking.courier import tracked
from gliotrail.tracking.journal import RunFolder
from gliotrail.tracking.lineage import Origin, describe, digest_of

EXPERIMENT: Final = "gliotrail-sweeps"


def sweep(
    params: Params,
    prepared: Path = Path("data/prepare"),
    patches: Path = Path("data/patch"),
    out: Path = Path("results/sweep"),
) -> None:
    """Run every trial that isn't finished yet; write `best.json` and `trials.csv`.

    Raises:
        ParamsError: a swept key that can't be swept, a size that isn't prepared or can't be halved.
        TrainingError: no trial came to its end, or the sweep was stopped.
    """
    trials = make_trials(params, prepared, patches)
    runs = [training.folder() for training in trials]
    names = [run.root.name for run in runs]
    parent = RunFolder(state_dir() / "runs" / f"sweep-{digest_of(names)}")
    waiting = [n for n, run in enumerate(runs) if not run.is_finished()]
    say(f"sweep: {len(trials)} trials, {len(trials) - len(waiting)} of them finished before")
    with tracked(parent, runs):
        if waiting or not parent.is_finished():
            _run(params, trials, runs, parent, waiting)
        table = [_row(params, training, run) for training, run in zip(trials, runs, strict=True)]
        best = _best(table, list(params.sweep.space))
        if not parent.is_finished():
            parent.end("FINISHED", "all trials ended", best)
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        write_json(partial / "best.json", best)
        with (partial / "trials.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    say(f"sweep: best is {best['params']}, validation Dice {best['score']:.3f}")


def make_trials(params: Params, prepared: Path, patches: Path) -> list[Training]:
    """The grid's trainings, in the order of params.yaml.

    Raises:
        ParamsError: a key that is none of train's, or a value that it can't have.
    """
    space = params.sweep.space
    for key in ("learning_rate", "patch_size"):
        if key not in space:
            raise ParamsError(f"sweep.space.{key}: missing", do="give it one choice to fix it")
    fixed = {"epochs": params.sweep.epochs, "seed": params.sweep.seed}
    for key in fixed.keys() & space.keys():
        raise ParamsError(f"sweep.space.{key}: can't be swept", do=f"set sweep.{key}")
    sections = [
        with_changes(params, dict(zip(space, values, strict=True)) | fixed, where="sweep.space")
        for values in itertools.product(*(choice.choice for choice in space.values()))
    ]
    first = Training.of(params, sections[0], prepared, patches)
    return [replace(first, section=section) for section in sections]


def _run(
    params: Params,
    trials: Sequence[Training],
    runs: Sequence[RunFolder],
    parent: RunFolder,
    waiting: Sequence[int],
) -> None:
    """The trials that wait, each in a run below the sweep's own."""
    with cluster() as connected:
        # seconds of imports, while Ray starts
        from gliotrail.distributed.description import describe_training
        from gliotrail.distributed.driver import check
        from gliotrail.distributed.trials import run_trials

        check(trials)
        origin = Origin.now()
        if not parent.has_begun():
            parent.begin(_describe(params, trials, origin))
        parent.reopen()
        above = parent.describe()["id"]
        for n in waiting:
            if not runs[n].has_begun():
                described = describe_training(trials[n], origin, EXPERIMENT, "trial", above)
                runs[n].begin(described)
            runs[n].reopen()
        connected()
        run_trials([trials[n] for n in waiting], [runs[n] for n in waiting])
    stopped = [run for run in runs if run.ended() is None]
    if stopped:
        got = f"{len(stopped)} of {len(runs)} trials unfinished"
        raise TrainingError("the sweep was stopped", got=got, do="run it again: it goes on")


def _describe(params: Params, trials: Sequence[Training], origin: Origin) -> dict[str, Any]:
    space = params.sweep.space
    return describe(
        origin,
        experiment=EXPERIMENT,
        kind="sweep",
        name=f"sweep of {' x '.join(space)}, {len(trials)} trials",
        params=params.sweep.model_dump(mode="json"),
        inputs=[training.inputs() for training in trials],
        data=data_paths(*space["patch_size"].choice),
    )


def _row(params: Params, training: Training, run: RunFolder) -> dict[str, Any]:
    values, ended = training.section.model_dump(mode="json"), run.ended()
    assert ended is not None
    finished = ended["status"] == "FINISHED"
    return {
        "trial": run.root.name,
        **{key: values[key] for key in params.sweep.space},
        "status": ended["status"],
        "score": ended["summary"].get("score"),
        "steps": ended["summary"].get("steps"),
        "reason": "" if finished else ended["reason"],
    }


def _best(table: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    finished = [row for row in table if row["score"] is not None]
    if not finished:
        raise TrainingError("sweep: no trial came to its end", got=table[0]["reason"])
    best = max(finished, key=lambda row: float(row["score"]))
    return {
        "params": {key: best[key] for key in keys},
        "score": best["score"],
        "trial": best["trial"],
    }
