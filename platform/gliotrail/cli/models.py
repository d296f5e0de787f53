"""What came out, and from a model back to what made it."""

import json
import math
import os
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from gliotrail.cli.output import Json, number, print_json
from gliotrail.errors import DataError
from gliotrail.imaging.labels import CLASSES, REGIONS

Name = Annotated[
    str, typer.Argument(metavar="MODEL_OR_RUN", help="models:/NAME@ALIAS, or a run's id.")
]
Other = Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="The other one.")]


def trace(name: Name, as_json: Json = False) -> None:
    """Show what a model or a run came from, and the commands that rebuild it."""
    from gliotrail.tracking.trace import as_text
    from gliotrail.tracking.trace import trace as find

    found = find(name)
    if as_json:
        print_json(found)
        return
    table = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    for kind in ("model", "run", "code", "parent", "environment", "params", "measures"):
        for n, (key, value) in enumerate((found[kind] or {"": "none"}).items()):
            table.add_row("" if n else kind, key, as_text(value))
        table.add_section()
    for n, data in enumerate(found["data"]):
        where = ", ".join(data["at"]) or "not in the cache, and there is no remote"
        table.add_row("" if n else "data", data["path"], f"{data['digest']} ({where})")
    Console(soft_wrap=True).print(table)
    if found["commands"]:
        print("to rebuild it:", *found["commands"], sep="\n  ")
    else:
        print(f"not rebuildable: {found['code']['problem'] or 'no commit is known'}")


def compare(first: Name, second: Other, as_json: Json = False) -> None:
    """Show what differs between two models or runs: params, data, code, environment, metrics."""
    from gliotrail.tracking.trace import as_text
    from gliotrail.tracking.trace import compare as differences

    found = differences(first, second)
    if as_json:
        print_json(found)
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("", "", first, second):
        table.add_column(column, overflow="fold")
    for kind, rows in found.items():
        for n, (key, values) in enumerate(rows.items()):
            table.add_row("" if n else kind, key, *map(as_text, values))
        table.add_section()
    if any(found.values()):
        Console().print(table)
    else:
        print("nothing differs")


def reproduce(
    name: Name,
    with_sweep: Annotated[
        bool, typer.Option("--with-sweep", help="Sweep again; else its recorded winner is taken.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model again from what its run recorded, and compare weights, curves and measures.

    Exit code 0 where they are the same, bit for bit; else 1, with the largest differences.
    """
    from gliotrail.tracking.reproduce import reproduce as again

    found = again(name, with_sweep)
    if as_json:
        parts = {
            key: asdict(part) | {"largest": part.largest if math.isfinite(part.largest) else None}
            for key, part in found.parts.items()
        }
        print_json(asdict(found) | {"parts": parts, "is_identical": found.is_identical})
    else:
        table = Table(box=box.SIMPLE, pad_edge=False)
        for column in ("", "numbers", "equal", "largest difference", "at"):
            table.add_column(column, justify="right" if column in {"numbers", "equal"} else "left")
        for key, part in found.parts.items():
            largest = f"{part.largest:.3g}"
            table.add_row(key, str(part.n), str(part.n_equal), largest, part.where)
        Console().print(table)
        print(f"{found.again} reproduces {found.run}: {found.verdict}")
    if not found.is_identical:
        raise typer.Exit(1)


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
    from gliotrail.runs.addresses import shown, tracking_uri

    if find_spec("mlflow") is None:
        raise ModuleNotFoundError(name="mlflow")
    print("in MLflow switch to 'Model training', at the top on the left")
    if tracking_uri().startswith(("http://", "https://")):
        print(f"MLflow's pages: {shown(tracking_uri())} (a server that runs already)")
        return
    print(f"MLflow's pages: http://127.0.0.1:{port} (end with Ctrl-C)", flush=True)
    server = ["-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, *server, *address])
