"""`gliotrail COMMAND`: everything that is not a stage of the pipeline.

Stages run by `dvc repro`; these commands show results, or work on single scans and runs.
"""

from importlib import metadata
from typing import Annotated

import typer

from gliotrail.cli import champion, cluster, data, experiments, models, pictures, runs, scans
from gliotrail.errors import one_line_errors

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
TASKS = {
    "Look at data and results": (
        *(pictures.show, pictures.view, pictures.pictures),
        *(models.metrics, models.ui),
    ),
    "Segment a scan, measure a mask": (scans.segment, scans.score),
    "Try another value": (experiments.try_, experiments.experiments),
    "From a model back to its data": (
        *(models.trace, models.compare, models.reproduce),
        *(champion.models, champion.promote, champion.demote),
    ),
    "Train, and keep order": (cluster.sweep, cluster.submit, runs.app, cluster.doctor, runs.gc),
    "Bring data and weights in and out": (data.data_app, data.patches_app, data.weights_app),
}
for task, commands in TASKS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=task)
        else:
            app.command(command.__name__.strip("_"), rich_help_panel=task)(command)


def _version(asked: bool) -> None:
    if asked:
        print(f"gliotrail {metadata.version('gliotrail')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    """The options before a command."""


def main() -> None:
    """The entry point: errors are one line, without a traceback."""
    with one_line_errors("nothing is half written; run the same command again"):
        try:
            app()
        except SystemExit as ended:
            if ended.code == 130:  # typer's, after Ctrl-C, without a message
                raise KeyboardInterrupt from None
            raise
