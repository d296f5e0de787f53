"""What came out of the pipeline."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gliotrail.cli.show import Json, number, print_json
from gliotrail.errors import DataError
from gliotrail.imaging.labels import CLASSES, REGIONS


def metrics(
    path: Annotated[Path, typer.Argument()] = Path("results/evaluate/metrics.json"),
    as_json: Json = False,
) -> None:
    """Show the held-out patients' measures, and where to look next."""
    if not path.is_file():
        raise DataError("no such file", where=path, do="run `dvc repro` first")
    values = json.loads(path.read_text())
    if as_json:
        print_json(values)
        return
    table = Table(title=f"held-out patients: {values['cases']}")
    for column in ("", "Dice", "sensitivity", "specificity", "HD95 mm", "cases with a Dice"):
        table.add_column(column, justify="right" if column else "left")
    for kind, names in (("classes", CLASSES), ("regions", tuple(REGIONS))):
        for name in names:
            row = values[name]
            cells = [number(row[key]) for key in ("dice", "sensitivity", "specificity")]
            table.add_row(name, *cells, number(row["hd95_mm"], 1), str(row["defined"]))
        table.add_row(f"mean of {kind}", number(values[f"mean_{kind}"]), end_section=True)
    Console().print(table)
    print(f"whole-scan soft Dice loss {values['soft_dice_loss']:.3f}")
    print("look next: `make ui` opens MLflow; masks and pictures are in results/evaluate")


def ui(port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000) -> None:
    """Open MLflow's pages on what was recorded (seen from this machine only)."""
    from gliotrail.tracking.address import shown, tracking_uri

    print("in MLflow switch to 'Model training', at the top on the left")
    if tracking_uri().startswith(("http://", "https://")):
        print(f"MLflow's pages: {shown(tracking_uri())} (a server that runs already)")
        return
    print(f"MLflow's pages: http://127.0.0.1:{port} (end with Ctrl-C)", flush=True)
    server = ["-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, *server, *address])
