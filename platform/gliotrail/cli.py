"""`gliotrail COMMAND`: what people do that is no stage of the pipeline."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gliotrail.errors import DataError, one_line_errors
from gliotrail.imaging.labels import CLASSES, REGIONS

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def main() -> None:
    """The entry point: errors are one line, without a traceback."""
    with one_line_errors():
        app()


@app.command()
def metrics(
    path: Annotated[Path, typer.Argument()] = Path("results/evaluate/metrics.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the held-out patients' measures, and where to look next."""
    if not path.is_file():
        raise DataError("no such file", where=path, do="run `dvc repro` first")
    values = json.loads(path.read_text())
    if as_json:
        print(json.dumps(values, indent=1))
        return
    table = Table(title=f"held-out patients: {values['cases']}")
    for column in ("", "Dice", "sensitivity", "specificity", "HD95 mm", "cases with a Dice"):
        table.add_column(column, justify="left" if not column else "right")
    for kind, names in (("classes", CLASSES), ("regions", tuple(REGIONS))):
        for name in names:
            row = values[name]
            cells = [_number(row[key]) for key in ("dice", "sensitivity", "specificity")]
            table.add_row(name, *cells, _number(row["hd95_mm"], 1), str(row["defined"]))
        table.add_row(f"mean of {kind}", _number(values[f"mean_{kind}"]), end_section=True)
    Console().print(table)
    print(f"whole-scan soft Dice loss {values['soft_dice_loss']:.3f}")
    print("look next: `make ui` opens MLflow; masks and pictures are in results/evaluate")


def _number(value: float | None, digits: int = 3) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
) -> None:
    """Open MLflow's pages on what was recorded (this machine only)."""
    from gliotrail.tracking.runs import tracking_uri

    os.execv(
        sys.executable,
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri(),
         "--host", "127.0.0.1", "--port", str(port)],
    )  # fmt: skip
