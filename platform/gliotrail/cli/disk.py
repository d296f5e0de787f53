"""`gliotrail gc`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gliotrail.cli.show import Json, print_json


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    days: Annotated[
        float, typer.Option(min=0, help="Checkpoints of trainings that ended early stay so long.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """List the disk by owner, and remove what nothing needs any more.

    Stays: what a living process works on, what MLflow was not told, what registered models came
    from, and what this checkout, git's branches and tags, or experiments refer to.
    """
    from gliotrail.tracking.disk import parts

    found = parts(days)
    table = Table(box=None, pad_edge=False)
    for column in ("what", "MB", "would go" if dry_run else "went", "stays"):
        table.add_column(column, justify="left" if column in {"what", "stays"} else "right")
    said = []
    for part in found:
        if not dry_run and part.unneeded_bytes:
            said.append(part.remove())
        sizes = (f"{n / 1e6:.1f}" for n in (part.size_bytes, part.unneeded_bytes))
        table.add_row(part.owner, *sizes, part.told)
    total = sum(part.unneeded_bytes for part in found)
    if as_json:
        parts_told = [
            {
                "owner": part.owner,
                "bytes": part.size_bytes,
                "unneeded_bytes": part.unneeded_bytes,
                "stays": part.told,
            }
            for part in found
        ]
        print_json({"parts": parts_told, "unneeded_bytes": total, "removed": not dry_run})
        return
    Console().print(table)
    for text in filter(None, said):
        print(text)
    print(f"{total / 1e6:.1f} MB {'would go' if dry_run else 'went'}")
