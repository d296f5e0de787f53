"""The result of a sweep: a row for each trial, the winner, the stage's files, a printed table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gliotrail.errors import TrainingError
from gliotrail.files import csv_bytes, replacing, write_json
from gliotrail.params import Sweep
from gliotrail.search.halving import Halving
from gliotrail.search.proposals import Trial

Row = Mapping[str, Any]


def row_of(trial: Trial, halving: Halving) -> Row:
    """How a trial ended: FINISHED, STOPPED (early) or FAILED.

    `score` is the mean Dice over regions of whole validation scans; `voxels` are those it saw.
    """
    ended, stopped = trial.run.ended(), halving.stopped(trial)
    assert ended is not None
    status, score, reason = ended["status"], ended["summary"].get("score"), ended["reason"]
    steps = ended["summary"].get("steps")
    if stopped is not None:  # another sweep may have finished it since
        from gliotrail.training.driver import plan_of  # seconds of imports

        status, score, reason = "STOPPED", stopped.value, halving.reason(stopped)
        steps = stopped.rung * plan_of(trial.training).steps_per_epoch
    return {
        "trial": trial.name,
        **trial.values(),
        "status": status,
        "score": score,
        "steps": steps,
        "voxels": steps and steps * trial.training.voxels_per_step,
        "reason": "" if status == "FINISHED" else reason,
    }


def best_of(rows: Sequence[Row], trials: Sequence[Trial]) -> dict[str, Any]:
    """The best of the finished trials, all of which saw the same number of voxels.

    Of equal trials the first one wins.

    Raises:
        TrainingError: no trial finished.
    """
    finished = [n for n, row in enumerate(rows) if row["status"] == "FINISHED"]
    if not finished:
        raise TrainingError("sweep: no trial came to its end", got=rows[0]["reason"])
    best = max(finished, key=lambda n: float(rows[n]["score"]))
    return {
        "params": trials[best].values(),
        "score": rows[best]["score"],
        "trial": rows[best]["trial"],
    }


def figures(best: Mapping[str, Any], trials: Sequence[Trial], halving: Halving) -> dict[str, float]:
    """The metrics of the sweep's own run: its winner's Dice, and the best of each rung."""
    (winner,) = (trial for trial in trials if trial.name == best["trial"])
    last = {p.key: p.value for p in winner.run.points() if p.key.startswith("val/dice_")}
    scores = {key.replace("val/", "sweep/winner_"): value for key, value in last.items()}
    rungs = {f"sweep/best_dice_at_epoch_{n}": v for n, v in halving.best_by_rung().items()}
    return scores | rungs


def write(out: Path, rows: Sequence[Row], best: Mapping[str, Any], decisions: bytes) -> None:
    """The stage's outputs: `best.json`, `trials.csv`, `decisions.csv`."""
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        write_json(partial / "best.json", best)
        (partial / "decisions.csv").write_bytes(decisions)
        (partial / "trials.csv").write_bytes(csv_bytes(rows[0] if rows else (), rows))


def artifacts(
    sweep: Sweep,
    title: str,
    rows: Sequence[Row],
    trials: Sequence[Trial],
    halving: Halving,
    decisions: bytes,
) -> dict[str, bytes]:
    """The sweep's own files in MLflow, by name: two tables and three pictures."""
    # seconds of imports
    from gliotrail.report.figures import figure_png
    from gliotrail.report.sweep_charts import Outcome, draw_budget, draw_parallel, draw_rates
    from gliotrail.training.driver import plan_of

    logarithmic = {"learning_rate", *(key for key, of in sweep.space.items() if of.loguniform)}
    rungs = {rung for trial in trials for rung in halving.rungs(trial.number)[1]} | {sweep.epochs}
    outcomes = [
        Outcome(
            {k: v if isinstance(v, int | float) else str(v) for k, v in trial.values().items()},
            row["status"],
            row["score"],
            row["voxels"] or 0,
            (row["steps"] or 0) / plan_of(trial.training).steps_per_epoch,
        )
        for row, trial in zip(rows, trials, strict=True)
    ]
    return {
        "trials.csv": csv_bytes(rows[0], rows),
        "decisions.csv": decisions,
        "parallel_coordinates.png": figure_png(draw_parallel(outcomes, title, logarithmic)),
        "learning_rate.png": figure_png(draw_rates(outcomes, title)),
        "budget.png": figure_png(draw_budget(outcomes, sorted(rungs), title)),
    }


def summary(rows: Sequence[Row], best: Mapping[str, Any]) -> str:
    """One line about a sweep."""
    counts = Counter(row["status"].lower() for row in rows)
    by_status = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    values = ", ".join(f"{key} {_short(value)}" for key, value in best["params"].items())
    voxels = sum(row["voxels"] or 0 for row in rows)
    return (
        f"{len(rows)} trials ({by_status}), {voxels / 1e6:.0f} million voxels; "
        f"best: {values}, validation Dice {best['score']:.3f}"
    )


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """The trials as a table on standard error: finished ones first, the best on top."""
    keys = [key for key in rows[0] if key not in {"trial", "steps", "voxels", "reason"}]
    table = Table(title="trials, by validation Dice")
    for key in keys:
        table.add_column({"score": "Dice"}.get(key, key), justify="right")
    table.add_column("voxels, millions", justify="right")
    failed = [row for row in rows if row["status"] == "FAILED"]
    order = {"FINISHED": 0, "STOPPED": 1}
    for row in sorted(rows, key=lambda r: (order.get(r["status"], 2), -(r["score"] or 0))):
        voxels = "" if row["voxels"] is None else f"{row['voxels'] / 1e6:.1f}"
        table.add_row(*(escape(_short(row[key])) for key in keys), voxels)
    console = console or Console(stderr=True)
    console.print(table)
    for row in failed:
        console.print(f"{row['trial']}: {row['reason']}", markup=False)


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
