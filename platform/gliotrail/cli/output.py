"""How commands print."""

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table's cell."""
    return "none" if value is None else f"{value:.{digits}f}"


def tell(as_json: bool, values: Any, *lines: str) -> None:
    """Print values as JSON where that is asked for, else lines for people."""
    if as_json:
        print_json(values)
    else:
        print(*lines, sep="\n")


def print_json(values: Any) -> None:
    """Print JSON on standard output."""
    print(json.dumps(values, indent=1))
