"""From a model back to what made it."""

import math
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from gliotrail.cli.show import Json, print_json

Name = Annotated[
    str, typer.Argument(metavar="MODEL_OR_RUN", help="models:/NAME@ALIAS, or a run's id.")
]
Other = Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="The other one.")]


def trace(name: Name, as_json: Json = False) -> None:
    """Show what a model or a run came from, and the commands that rebuild it."""
    from gliotrail.tracking.trail import as_text
    from gliotrail.tracking.trail import trace as find

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
    from gliotrail.tracking.trail import as_text
    from gliotrail.tracking.trail import compare as differences

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
