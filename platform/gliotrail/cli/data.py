"""Data sets, patches and weights: brought in and out."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from gliotrail.cli import complete
from gliotrail.cli.output import Json, print_json, print_table, table_of, tell
from gliotrail.imaging.labels import CHANNELS, CLASSES

data_app = typer.Typer(name="data", no_args_is_help=True, help="Data sets of scans.")


@data_app.command("import-brats")
def import_brats(
    source: Annotated[Path, typer.Argument(help="A folder with BraTS' folders, of any year.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
    as_json: Json = False,
) -> None:
    """Bring BraTS' scans and labels into the layout of the Medical Segmentation Decathlon."""
    from gliotrail.imaging.formats.brats import import_brats as bring

    cases = bring(source, out).cases
    labelled = sum(case.label is not None for case in cases)
    tell(
        as_json,
        {"scans": len(cases), "labelled": labelled, "folder": str(out)},
        f"{len(cases)} scans in {out}, {labelled} of them labelled",
        f"use them: `dvc exp run -S fetch.source={out}`",
    )


patches_app = typer.Typer(name="patches", no_args_is_help=True, help="The patched data sets.")


@patches_app.command()
def export(
    size: Annotated[
        str,
        typer.Argument(help="A prepared size, such as 48x48x16.", autocompletion=complete.sizes),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    limit: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    standardized: Annotated[
        bool, typer.Option(help="Standardise each axial slice within the patch, as the course.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write patches as HDF5 files in the layout of the course, for other tools."""
    from gliotrail.imaging.formats.course import export_patches
    from gliotrail.imaging.patch import read_index
    from gliotrail.imaging.prepared import load_prepared

    index = read_index(Path("data/patch") / size / "index.parquet")
    kind = "standardized" if standardized else "raw"
    written = export_patches(load_prepared(Path("data/prepare")), index, out, limit, kind)
    values = {"patches": len(written), "folder": str(out)}
    tell(as_json, values, f"{len(written)} patches in {out}")


weights_app = typer.Typer(name="weights", no_args_is_help=True, help="Weights files.")


@weights_app.command("import")
def import_keras(
    file: Annotated[Path, typer.Argument(help="Keras' .h5 or .weights.h5.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors to write.")],
    channels: Annotated[str, typer.Option(help="The order of its inputs.")] = ",".join(CHANNELS),
    classes: Annotated[str, typer.Option(help="The order of its outputs.")] = ",".join(CLASSES),
    standardize: Annotated[
        Literal["brain", "slice", "none"], typer.Option(help="How its inputs were standardised.")
    ] = "slice",
    as_json: Json = False,
) -> None:
    """Take over a 3-D U-Net's weights from Keras: whole models and weights files, any depth."""
    from gliotrail.files import replacing
    from gliotrail.segmentation.keras import read_keras
    from gliotrail.segmentation.weights import to_bytes

    read = read_keras(file, channels.split(","), classes.split(","), standardize)
    with replacing(out) as partial:
        partial.write_bytes(to_bytes(read.state, read.description))
    model = read.description.model
    total = sum(row.parameters for row in read.mapped)
    if as_json:
        layers = [asdict(row) for row in read.mapped]
        described = read.description.model_dump(mode="json")
        print_json({"out": str(out), "parameters": total, "layers": layers, **described})
        return
    print(f"U-Net of depth {model.depth}, {model.base_filters} base filters")
    table = table_of("network", "Keras layer", "kernel", "parameters", left=3)
    for row in read.mapped:
        kernel = " x ".join(map(str, row.kernel))
        table.add_row(row.module, row.layer, kernel, f"{row.parameters:,}")
    table.add_section()
    table.add_row("total", "", "", f"{total:,}")
    print_table(table)
    print(f"inputs {', '.join(read.description.channels)}, standardised by {standardize}")
    print(f"outputs {', '.join(read.description.classes)}; written to {out}")
