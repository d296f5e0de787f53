"""`gliotrail COMMAND`: what people do that is no stage of the pipeline.

Stages run by `dvc repro`; these commands look at what came out, or work on single scans and runs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gliotrail.errors import DataError, one_line_errors
from gliotrail.imaging.labels import CLASSES, REGIONS

# rooms with slow imports (torch, mlflow) are imported by the command that needs them
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
patches = typer.Typer(no_args_is_help=True, help="The patched data sets.")
runs = typer.Typer(no_args_is_help=True, help="What was trained, and what MLflow knows of it.")
app.add_typer(patches, name="patches")
app.add_typer(runs, name="runs")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """The entry point: errors are one line, without a traceback."""
    with one_line_errors():
        app()


@app.command()
def metrics(
    path: Annotated[Path, typer.Argument()] = Path("results/evaluate/metrics.json"),
    as_json: Json = False,
) -> None:
    """Show the held-out patients' measures, and where to look next."""
    if not path.is_file():
        raise DataError("no such file", where=path, do="run `dvc repro` first")
    values = json.loads(path.read_text())
    if as_json:
        _print_json(values)
        return
    table = Table(title=f"held-out patients: {values['cases']}")
    for column in ("", "Dice", "sensitivity", "specificity", "HD95 mm", "cases with a Dice"):
        table.add_column(column, justify="right" if column else "left")
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


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=1))


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000) -> None:
    """Open MLflow's pages on what was recorded (seen from this machine only)."""
    from gliotrail.tracking.runs import tracking_uri

    print(f"MLflow's pages: http://127.0.0.1:{port} (end with Ctrl-C)", flush=True)
    server = ["-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, *server, *address])


@patches.command("export")
def export_patches(
    size: Annotated[str, typer.Argument(help="A prepared size, such as 48x48x16.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    limit: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    standardized: Annotated[
        bool, typer.Option(help="Standardise each axial slice within the patch, as the course.")
    ] = False,
) -> None:
    """Write patches as HDF5 files in the layout of the course, for other tools."""
    from gliotrail.imaging.course import export_patches as export
    from gliotrail.imaging.patch import read_index
    from gliotrail.imaging.prepared import load_prepared

    index = read_index(Path("data/patch") / size / "index.parquet")
    values = "standardized" if standardized else "raw"
    written = export(load_prepared(Path("data/prepare")), index, out, limit, values)
    print(f"{len(written)} patches in {out}")


@runs.command("sync")
def sync() -> None:
    """Deliver to the tracking server what it doesn't know yet. It can be repeated."""
    from gliotrail.tracking.sync import sync_all

    known, problems = sync_all()
    print(f"{known} runs are in MLflow")
    for name, problem in problems.items():
        print(f"{name}: {problem}")
    if problems:
        raise typer.Exit(1)
