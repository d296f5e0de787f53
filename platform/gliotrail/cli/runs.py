"""`gliotrail runs`."""

import typer

app = typer.Typer(
    name="runs", no_args_is_help=True, help="What was trained, and what MLflow knows of it."
)


@app.command()
def sync() -> None:
    """Deliver to the tracking server what it doesn't know yet. It can be repeated."""
    from gliotrail.tracking.sync import sync_all

    known, problems = sync_all()
    print(f"{known} runs are in MLflow")
    for name, problem in problems.items():
        print(f"{name}: {problem}")
    if problems:
        raise typer.Exit(1)
