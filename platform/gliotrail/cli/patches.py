"""`gliotrail patches`."""

from pathlib import Path
from typing import Annotated

import typer

from gliotrail.cli.show import Json, tell

app = typer.Typer(name="patches", no_args_is_help=True, help="The patched data sets.")


@app.command()
def export(
    size: Annotated[str, typer.Argument(help="A prepared size, such as 48x48x16.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    limit: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    standardized: Annotated[
        bool, typer.Option(help="Standardise each axial slice within the patch, as the course.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write patches as HDF5 files in the layout of the course, for other tools."""
    from gliotrail.imaging.course import export_patches
    from gliotrail.imaging.patch import read_index
    from gliotrail.imaging.prepared import load_prepared

    index = read_index(Path("data/patch") / size / "index.parquet")
    kind = "standardized" if standardized else "raw"
    written = export_patches(load_prepared(Path("data/prepare")), index, out, limit, kind)
    values = {"patches": len(written), "folder": str(out)}
    tell(as_json, values, f"{len(written)} patches in {out}")
