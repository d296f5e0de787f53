"""`gliotrail weights`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from gliotrail.cli.show import Json, print_json
from gliotrail.imaging.labels import CHANNELS, CLASSES

app = typer.Typer(name="weights", no_args_is_help=True, help="Weights files.")


@app.command("import")
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
    table = Table(title=f"U-Net of depth {model.depth}, {model.base_filters} base filters")
    for column in ("network", "Keras layer", "kernel", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for row in read.mapped:
        kernel = " x ".join(map(str, row.kernel))
        table.add_row(row.module, row.layer, kernel, f"{row.parameters:,}")
    table.add_section()
    table.add_row("total", "", "", f"{total:,}")
    Console().print(table)
    print(f"inputs {', '.join(read.description.channels)}, standardised by {standardize}")
    print(f"outputs {', '.join(read.description.classes)}; written to {out}")
