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
from rich.table import Table

from gliotrail.cli.output import Json, number, print_json, print_table, table_of
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
    table = _facts()
    for kind in ("model", "run", "code", "parent", "environment", "params", "measures"):
        for n, (key, value) in enumerate((found[kind] or {"": "none"}).items()):
            table.add_row("" if n else kind, key, as_text(value))
        table.add_section()
    for n, data in enumerate(found["data"]):
        where = ", ".join(data["at"]) or "not in the cache, and there is no remote"
        table.add_row("" if n else "data", data["path"], f"{data['digest']} ({where})")
    print_table(table)
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
    table = table_of("", "", first, second, "difference", left=4)
    table.columns[1].no_wrap = True  # a key is looked for as it is
    for kind, rows in found.items():
        for n, (key, values) in enumerate(rows.items()):
            told = [f"{v:.4g}" if isinstance(v, float) else as_text(v) for v in values]
            table.add_row("" if n else kind, key, *told, _difference(*values))
        table.add_section()
    if any(found.values()):
        print_table(table)
    else:
        print("nothing differs")


def _facts() -> Table:
    table = table_of("", "", "", left=3)
    table.show_header = False
    return table


def _difference(one: object, other: object) -> str:
    """Of two numbers, which MLflow keeps as text where they are params."""
    try:
        return f"{float(str(other)) - float(str(one)):+.4g}"
    except ValueError:
        return ""


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
        table = table_of("", "numbers", "equal", "largest difference", "at")
        for key, part in found.parts.items():
            largest = f"{part.largest:.3g}"
            table.add_row(key, str(part.n), str(part.n_equal), largest, part.where)
        print_table(table)
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
    try:
        values = json.loads(path.read_bytes())
        n_cases, loss = int(values["cases"]), values["soft_dice_loss"]
    except (ValueError, KeyError, TypeError):
        wanted = "what `dvc repro` writes to results/evaluate/metrics.json"
        raise DataError("no measures", where=path, wanted=wanted, got="another file") from None
    if as_json:
        print_json(values)
        return
    print(f"held-out patients: {n_cases}")
    table = table_of("", "Dice", "sensitivity", "specificity", "HD95 mm", "cases")
    for kind, names in (("classes", CLASSES), ("regions", tuple(REGIONS))):
        for name in names:
            row = values[name]
            cells = [number(row[key]) for key in ("dice", "sensitivity", "specificity")]
            table.add_row(name, *cells, number(row["hd95_mm"], 1), str(row["defined"]))
        table.add_row(f"mean of {kind}", number(values[f"mean_{kind}"]), end_section=True)
    print_table(table)
    print("cases: those with a Dice, which has none where there is nothing to find")
    print(f"whole-scan soft Dice loss {number(loss)}")
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
