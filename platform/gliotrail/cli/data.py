"""`gliotrail data`."""

from pathlib import Path
from typing import Annotated

import typer

from gliotrail.cli.show import Json, tell

app = typer.Typer(name="data", no_args_is_help=True, help="Data sets of scans.")


@app.command("import-brats")
def import_brats(
    source: Annotated[Path, typer.Argument(help="A folder with BraTS' folders, of any year.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
    as_json: Json = False,
) -> None:
    """Bring BraTS' scans and labels into the layout of the Medical Segmentation Decathlon."""
    from gliotrail.imaging.brats import import_brats as bring

    cases = bring(source, out).cases
    labelled = sum(case.label is not None for case in cases)
    tell(
        as_json,
        {"scans": len(cases), "labelled": labelled, "folder": str(out)},
        f"{len(cases)} scans in {out}, {labelled} of them labelled",
        f"use them: `dvc exp run -S fetch.source={out}`",
    )
