"""`gliotrail COMMAND`: what people do that is no stage of the pipeline.

Stages run by `dvc repro`; these commands look at what came out, or work on single scans and runs.
"""

import typer

from gliotrail.cli import (
    data,
    disk,
    doctor,
    lineage,
    patches,
    results,
    runs,
    scans,
    submit,
    sweep,
    view,
    weights,
)
from gliotrail.errors import one_line_errors

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
alone = (results.metrics, results.ui, scans.score, scans.segment, lineage.trace, lineage.compare)
for command in (
    *alone,
    lineage.reproduce,
    disk.gc,
    doctor.doctor,
    sweep.sweep,
    submit.submit,
    view.view,
):
    app.command()(command)
for group in (data, patches, runs, weights):
    app.add_typer(group.app)


def main() -> None:
    """The entry point: errors are one line, without a traceback."""
    with one_line_errors():
        app()
