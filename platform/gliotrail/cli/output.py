"""The commands' output."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from gliotrail.errors import ParamsError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_WIDEST: Final = 10_000


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table's cell."""
    return "none" if value is None else f"{value:.{digits}f}"


def tell(as_json: bool, values: Any, *lines: str) -> None:
    """Print values as JSON if asked for, else lines for people."""
    if as_json:
        print_json(values)
    else:
        print(*lines, sep="\n")


def check_output(path: Path, suffix: str) -> None:
    """Look at the name of a file to write, before any work.

    Raises:
        ParamsError: it is a folder's, or that of another kind of file.
    """
    if path.suffix != suffix or path.is_dir():
        raise ParamsError("output", wanted=f"a {suffix}", got=str(path))


def table_of(*columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are words, the others numbers. Cells are never cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n < left else "right", overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table: at full width for another program, else folded to the screen."""
    Console(width=None if sys.stdout.isatty() else _WIDEST).print(table)


def print_json(values: Any) -> None:
    """Print JSON on standard output."""
    print(json.dumps(values, indent=1))
