"""How commands print."""

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table's cell."""
    return "none" if value is None else f"{value:.{digits}f}"


def print_json(values: Any) -> None:
    """Print JSON on standard output."""
    print(json.dumps(values, indent=1))
