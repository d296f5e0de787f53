"""`gliotrail runs` and `gliotrail gc`."""

from dataclasses import asdict
from typing import Annotated

import typer

from gliotrail.cli import complete
from gliotrail.cli.output import Json, print_json, print_table, table_of, tell

app = typer.Typer(
    name="runs", no_args_is_help=True, help="Runs of this checkout, and their delivery to MLflow."
)


@app.command()
def sync(as_json: Json = False) -> None:
    """Deliver to the tracking server what it lacks. It can be repeated."""
    from gliotrail.tracking.sync import sync_all

    known, problems = sync_all()
    lines = [f"{name}: {problem}" for name, problem in problems.items()]
    values = {"known": known, "problems": problems}
    tell(as_json, values, f"{known} runs are in MLflow", *lines)
    if problems:
        raise typer.Exit(1)


@app.command()
def status(as_json: Json = False) -> None:
    """List the runs of this checkout, their disk usage, and what the tracking server lacks."""
    from gliotrail.runs.addresses import shown, tracking_uri
    from gliotrail.runs.disk_budget import BUDGET, budget_bytes
    from gliotrail.runs.local_runs import all_runs, look_at, runs_dir

    runs, budget = [look_at(run) for run in all_runs()], budget_bytes()
    runs.sort(key=lambda run: run.started_ms)
    if as_json:
        values = {"runs": [asdict(run) for run in runs], "budget_bytes": budget}
        print_json(values | {"server": shown(tracking_uri())})
        return
    table = table_of("run", "what", "status", "held by", "step", "disk MB", "not in MLflow", left=4)
    table.box, table.columns[0].no_wrap = None, True
    for run in runs:
        waits = f"{run.waiting_checkpoints} checkpoints, {run.waiting_bytes / 1e6:.1f} MB"
        waits = run.problem or ("" if run.is_known else waits)
        size = f"{run.size_bytes / 1e6:.1f}"
        table.add_row(run.folder, run.name, run.status, run.holder, str(run.step), size, waits)
    if runs:
        print_table(table)
    total, waiting = sum(run.size_bytes for run in runs), sum(not run.is_known for run in runs)
    print(f"{total / 1e6:.1f} MB of at most {budget / 1e6:.0f} ({BUDGET}) in {runs_dir()}")
    if waiting:
        print(f"not wholly in {shown(tracking_uri())}: {waiting}; `gliotrail runs sync` delivers")


@app.command()
def stop(
    run: Annotated[
        str,
        typer.Argument(
            help="Its folder, its own id or MLflow's, or the beginning of one.",
            autocompletion=complete.runs,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Stop a run, here or on another machine, at its next step and with a checkpoint.

    The process that works on it stops with all of its runs. The same command goes on from there.
    """
    from gliotrail.tracking.remote_stop import ask_by_name

    asked = ask_by_name(run)
    tell(as_json, {"asked": str(asked)}, f"{asked} was asked to stop at the next step")


@app.command()
def watch(
    run: Annotated[
        str | None,
        typer.Argument(
            help="Its folder or id, or the beginning of one; by default the newest running one.",
            autocompletion=complete.runs,
        ),
    ] = None,
) -> None:
    """Follow a run of this checkout in the terminal, step by step. Ctrl-C ends only the view."""
    from gliotrail.runs.local_runs import newest_running, run_named
    from gliotrail.training.watch import follow

    found = run_named(run) if run else newest_running()
    try:
        print(f"{found.root.name}: {found.describe()['name']}", flush=True)
        for line in follow(found):
            print(line, flush=True)
    except KeyboardInterrupt:
        print("no longer watched; the run goes on")


@app.command()
def reap(as_json: Json = False) -> None:
    """Close runs whose processes are gone as KILLED.

    Runs of other machines are watched for three of their heartbeats, by default 90 seconds.
    """
    from gliotrail.tracking.client import one_line
    from gliotrail.tracking.reaper import reap_all

    with one_line():
        closed = reap_all()
    tell(as_json, {"closed": list(closed)}, f"closed: {', '.join(closed) or 'none'}")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list, remove nothing.")] = False,
    days: Annotated[
        float, typer.Option(min=0, help="How long checkpoints of trainings that ended early stay.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """List the disk usage by owner, and remove what is not needed any more.

    Everything stays that a living process works on, that is not in MLflow yet, that registered
    models came from, or that this checkout, git's branches and tags, or experiments refer to.
    """
    from gliotrail.tracking.disk_usage import parts

    found = parts(days)
    table = table_of("what", "MB", "would go" if dry_run else "went", "stays")
    table.box, table.columns[-1].justify = None, "left"
    said = []
    for part in found:
        if not dry_run and part.unneeded_bytes:
            said.append(part.remove())
        sizes = (f"{n / 1e6:.1f}" for n in (part.size_bytes, part.unneeded_bytes))
        table.add_row(part.owner, *sizes, part.stays)
    total = sum(part.unneeded_bytes for part in found)
    if as_json:
        parts_told = [
            {
                "owner": part.owner,
                "bytes": part.size_bytes,
                "unneeded_bytes": part.unneeded_bytes,
                "stays": part.stays,
            }
            for part in found
        ]
        print_json({"parts": parts_told, "unneeded_bytes": total, "removed": not dry_run})
        return
    print_table(table)
    for text in filter(None, said):
        print(text)
    print(f"{total / 1e6:.1f} MB {'would go' if dry_run else 'went'}")
