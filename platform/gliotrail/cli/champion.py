"""The registered models: which there are, and which one is champion."""

from typing import Annotated

import typer

from gliotrail.cli.complete import versions
from gliotrail.cli.output import Json, number, print_json, print_table, table_of, tell
from gliotrail.dataset.brats import BRATS

Version = Annotated[
    str,
    typer.Argument(
        metavar="VERSION", help="Its number, or models:/NAME/NUMBER.", autocompletion=versions
    ),
]


def models(as_json: Json = False) -> None:
    """List the registered models, the newest first, with their Dice on validation and held out.

    `gliotrail segment` takes the one that was promoted by name, where it is not told another.
    """
    from gliotrail.tracking.champion import versions as known

    rows = known()
    if as_json:
        print_json(rows)
        return
    columns = ("validation", "held out", *BRATS.region_names, "Mvoxels", "planned")
    table = table_of("version", "is", *columns, "run", left=2)
    for row in rows:
        dice = (row["validation_dice"], *(row["held_out_dice"].get(n) for n in _SHOWN))
        voxels = (row["voxels"], row["planned_voxels"])
        table.add_row(
            row["version"],
            ", ".join(row["aliases"]),
            *map(number, dice),
            *(number(n and n / 1e6, 1) for n in voxels),
            row["run"],
        )
    print_table(table)
    print("Dice is the mean of WT, TC and ET; the champion is judged by the one on validation")


_SHOWN = ("mean_regions", *BRATS.region_names)


def promote(version: Version, as_json: Json = False) -> None:
    """Make a version champion, whatever its figures are, and what `gliotrail segment` takes."""
    from gliotrail.tracking.champion import crown

    told = crown(version)
    tell(as_json, told, str(told["told"]))


def demote(version: Version, as_json: Json = False) -> None:
    """Take the champion's name away from a version: there is none until the next is promoted."""
    from gliotrail.tracking.champion import uncrown

    told = uncrown(version)
    tell(as_json, told, str(told["told"]))
