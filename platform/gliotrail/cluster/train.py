"""Stage `train`: fine-tune the network on Ray's workers; writes model, journal and curves."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gliotrail.cluster.autoscaling import wait_until_free, when_there_are
from gliotrail.cluster.connection import (
    WORKERS,
    Resources,
    check_shares,
    cluster,
    share_out,
    workers_wanted,
)
from gliotrail.cluster.job_inputs import mirror_of
from gliotrail.errors import ParamsError, TrainingError
from gliotrail.files import csv_bytes, replacing, write_durably, write_json
from gliotrail.param_types import FROM_SWEEP
from gliotrail.params import Params, Train
from gliotrail.progress import say
from gliotrail.runs.journal import (
    JOURNAL_FILE,
    LOSS_PICTURE,
    MODEL_FILE,
    RUN_FILE,
    Point,
    RunFolder,
    resume_tags,
)
from gliotrail.runs.stop import stop_if_asked
from gliotrail.tracking.delivery_thread import tracked
from gliotrail.training.inputs import Training, with_changes

EXPERIMENT: Final = "gliotrail"
_CURVES: Final = {"train": "train.csv", "val": "validation.csv", "val_synthetic": "synthetic.csv"}


def train(
    params: Params,
    prepared: Path = Path("data/prepare"),
    patches: Path = Path("data/patch"),
    sweep: Path = Path("results/sweep"),
    out: Path = Path("results/train"),
) -> None:
    """Train by params.yaml, going on where an interrupted training of the same inputs was.

    Raises:
        ParamsError: no winner of a sweep, a patch size that isn't prepared or can't be halved.
        TrainingError, DataError, ClusterError: from training, data and cluster.
    """
    section = choose(params, sweep / "best.json")
    export(run_tracked(Training.of(params, section, prepared, patches), EXPERIMENT, "train"), out)


def run_tracked(training: Training, experiment: str, kind: str) -> RunFolder:
    """Train to the end on Ray's workers, or take an earlier training of the same inputs.

    Args:
        kind: `train`, `pretrain` or `fold`.

    Raises:
        TrainingError, DataError, ClusterError: from training, data and cluster.
        Stopped: by Ctrl-C, SIGTERM or `gliotrail runs stop`.
    """
    run, workers = training.folder(), workers_wanted()
    mirror = mirror_of(run)
    with tracked(run):
        if mirror:
            mirror.bring()
        if run.is_finished():
            say(f"{kind}: the same inputs were trained on before; nothing to do")
        else:
            _fit(training, run, workers, experiment, kind)
            if mirror:
                mirror.send_whole()
    return run


def _fit(
    training: Training,
    run: RunFolder,
    workers: tuple[int | None, int | None],
    experiment: str,
    kind: str,
) -> None:
    with cluster() as connected:
        # seconds of imports, while Ray starts
        from gliotrail.cluster.gpus import decide, gpus_wanted
        from gliotrail.cluster.workers import fit_on_workers
        from gliotrail.runs.lineage import Origin
        from gliotrail.training.description import describe_training, starting_artifacts
        from gliotrail.training.driver import plan_of
        from gliotrail.training.preflight import check
        from gliotrail.training.watch import watching

        check([training])
        batch_size, gpus = training.section.batch_size, gpus_wanted()
        check_shares(*workers, batch_size, WORKERS)
        if not run.has_begun():
            described = describe_training(training, Origin.now(), experiment, kind)
            run.begin(described, starting_artifacts(training))
        run.reopen()
        if mirror := mirror_of(run):
            mirror.begin()
        connected()
        stop_if_asked(run)
        of_a_gpu = decide(gpus, kind, lambda: stop_if_asked(run))
        wanted = when_there_are(
            lambda there: share_out(there, *workers, of_a_gpu, batch_size),
            [Resources(1, 1, of_a_gpu).per_worker()] * (workers[0] or 1),
            lambda: stop_if_asked(run),
        )
        wait_until_free(wanted, kind, lambda: stop_if_asked(run))
        with watching(run, plan_of(training).steps, kind):
            fit_on_workers(training, run, wanted)
    try:
        finish(training, run)
    except TrainingError:  # not at its plan's end
        stop_if_asked(run)
        raise


def finish(training: Training, run: RunFolder) -> None:
    """Write the model and the curves beside the journal, and end the run.

    Raises:
        TrainingError: the training did not come to its plan's end.
    """
    from gliotrail.training.driver import result

    state, model = result(training, run, postprocess=True)
    write_durably(run.root / MODEL_FILE, model)  # before the end, which makes readers look
    for name, picture in _curves(training, run).items():
        run.attach(name, picture)
    score = {} if math.isnan(state.kept_score) else {"score": state.kept_score}
    run.end("FINISHED", "trained to the end", score | {"step": state.kept_step})


def _curves(training: Training, run: RunFolder) -> dict[str, bytes]:
    """The picture of all curves, and the one of the soft Dice loss alone."""
    from gliotrail.report.curves import draw_run
    from gliotrail.report.figures import figure_png

    points, name, task = run.points(), run.describe()["name"], training.task
    losses = [point for point in points if point.key.endswith("/soft_dice_loss")]
    return {
        "curves.png": figure_png(draw_run(points, name, task)),
        LOSS_PICTURE: figure_png(draw_run(losses, name, task)),
    }


def choose(params: Params, best: Path) -> Train:
    """The section `train`, with the sweep's winner where it asks for it.

    Args:
        best: the sweep's `best.json`.

    Raises:
        ParamsError: it asks for the winner, and there is none, or its file is damaged.
    """
    keys = [key for key in Train.model_fields if getattr(params.train, key) == FROM_SWEEP]
    if not keys:
        return params.train
    if not best.is_file():
        raise ParamsError("no winner of a sweep", where=best, do="run `dvc repro sweep`")
    try:
        winner = json.loads(best.read_text())["params"]
        chosen = {key: winner[key] for key in keys}
    except (ValueError, KeyError, TypeError) as error:
        do = "run `dvc repro --force sweep`; finished trials are not run again"
        wanted = f"a sweep's winner with {', '.join(keys)}"
        raise ParamsError("damaged", where=best, wanted=wanted, got=repr(error), do=do) from None
    return with_changes(params, chosen, where=best)


def export(run: RunFolder, out: Path) -> None:
    """The stage's outputs: the model, and a complete record of the run."""
    points = run.points()
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        shutil.copyfile(run.root / MODEL_FILE, partial / MODEL_FILE)
        journal = b"".join(checkpoint.segment() for checkpoint in run.history())
        (partial / JOURNAL_FILE).write_bytes(journal)
        says = run.describe()
        says["tags"] |= resume_tags(run.history())
        write_json(partial / RUN_FILE, says | {"ended": run.ended()})
        for part, name in _CURVES.items():
            (partial / name).write_bytes(_table(points, f"{part}/"))
        (partial / "dice.csv").write_bytes(_dice_by_name(points))


def _dice_by_name(points: Sequence[Point]) -> bytes:
    """The validation's Dice as CSV for `dvc plots`: a row a step and class, region or mean."""
    start = "val/dice_"
    rows = [
        {"step": point.step, "name": point.key.removeprefix(start), "dice": point.value}
        for point in points
        if point.key.startswith(start)
    ]
    return csv_bytes(("step", "name", "dice"), rows)


def _smooth(rows: Sequence[dict[str, float]], key: str) -> None:
    """Add a column's running mean, as `curves.png` draws it."""
    import numpy as np

    from gliotrail.report.curves import smoothed, window_of

    values = smoothed(np.array([row[key] for row in rows]), window_of(len(rows)))
    for row, value in zip(rows, values.tolist(), strict=True):
        row[f"{key}_smoothed"] = value


def _table(points: Sequence[Point], prefix: str) -> bytes:
    """The points whose key starts with `prefix` as CSV: a row a step, a column a key."""
    rows: dict[int, dict[str, float]] = {}
    for point in points:
        if point.key.startswith(prefix):
            row = rows.setdefault(point.step, {"step": point.step})
            row[point.key.removeprefix(prefix)] = point.value
    columns = dict.fromkeys(["step", *(key for row in rows.values() for key in row)])
    if prefix == "train/":
        _smooth(list(rows.values()), "soft_dice_loss")
        columns["soft_dice_loss_smoothed"] = None
    return csv_bytes(columns, rows.values())
