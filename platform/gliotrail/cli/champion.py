"""The registered models: which there are, and which one is champion."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any

import typer

from gliotrail.cli.complete import versions
from gliotrail.cli.output import Json, number, print_json, print_table, table_of, tell

Version = Annotated[
    str,
    typer.Argument(
        metavar="VERSION",
        help="Its number; NAME/NUMBER unless it is a brain tumour model.",
        autocompletion=versions,
    ),
]


def models(as_json: Json = False) -> None:
    """List the registered models, the newest first, with their Dice on validation and held out.

    Each data set has a model of its own. Without `--model`, `gliotrail segment` takes the brain
    tumour model that was promoted by name.
    """
    from gliotrail.tracking.champion import versions as known

    rows = known()
    if as_json:
        print_json(rows)
        return
    for model, of in groupby(rows, lambda row: str(row["model"])):
        _show(model, list(of))
    if not rows:
        print("no model is registered")


def _show(model: str, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["names"]))
    columns = ("validation", "held out", *names, "Mvoxels", "planned")
    table = table_of("version", "is", *columns, "run", left=2)
    for row in rows:
        held_out = row["held_out_dice"]
        dice = (row["validation_dice"], *(held_out.get(n) for n in ("mean_regions", *names)))
        voxels = (row["voxels"], row["planned_voxels"])
        table.add_row(
            row["version"],
            ", ".join(row["aliases"]),
            *map(number, dice),
            *(number(n and n / 1e6, 1) for n in voxels),
            row["run"],
        )
    print(model)
    print_table(table)
    of = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    print(f"Dice is the mean of {of}; the champion is judged by the one on validation")


def promote(version: Version, as_json: Json = False) -> None:
    """Make a version champion, whatever its Dice, and the default of `gliotrail segment`."""
    from gliotrail.tracking.champion import crown

    result = crown(version)
    tell(as_json, result, str(result["told"]))


def demote(version: Version, as_json: Json = False) -> None:
    """Make a version champion no longer: there is none until the next one is promoted."""
    from gliotrail.tracking.champion import uncrown

    result = uncrown(version)
    tell(as_json, result, str(result["told"]))
