"""Import and export of data sets, patches and weights."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from gliotrail.cli import complete
from gliotrail.cli.output import Json, check_output, print_json, print_table, table_of, tell
from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.errors import ParamsError

data_app = typer.Typer(name="data", no_args_is_help=True, help="Data sets of scans.")


@data_app.command("import")
def import_folder(
    source: Annotated[
        Path, typer.Argument(help="A folder of BraTS, BIDS, nnU-Net or the Decathlon.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
    scheme: Annotated[
        str | None, typer.Option(help="BraTS' label codes, if the folders' names don't show them.")
    ] = None,
    cavity: Annotated[
        Literal["class", "background"],
        typer.Option(help="What to do with BraTS 2024's resection cavity."),
    ] = "class",
    as_json: Json = False,
) -> None:
    """Convert scans and labels of other layouts to the one that `fetch.source` takes."""
    from gliotrail.imaging.formats.detect import import_any

    cases = import_any(source, out, scheme, cavity).cases
    labelled = sum(case.label is not None for case in cases)
    tell(
        as_json,
        {"scans": len(cases), "labelled": labelled, "folder": str(out)},
        f"{len(cases)} scans in {out}, {labelled} of them labelled",
        f"use them: `dvc exp run -S fetch.source={out}`",
    )


@data_app.command("import-brats", hidden=True)
def import_brats(
    source: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Option("--out", "-o")],
) -> None:
    """Its name is `import` now."""
    do = f"gliotrail data import {source} --out {out}"
    raise ParamsError("import-brats", wanted="data import, which knows BraTS and others", do=do)


patches_app = typer.Typer(name="patches", no_args_is_help=True, help="The patched data sets.")


@patches_app.command()
def export(
    size: Annotated[
        str,
        typer.Argument(help="A prepared size, such as 48x48x16.", autocompletion=complete.sizes),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    limit: Annotated[int | None, typer.Option(help="The most patches to write.")] = None,
    standardized: Annotated[
        bool, typer.Option(help="Standardise each axial slice within the patch, as the course.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write patches as HDF5 files in the layout of the course, for other tools."""
    from gliotrail.imaging.formats.course import export_patches
    from gliotrail.imaging.patch import read_index
    from gliotrail.imaging.prepared import load_prepared

    sizes = Path("data/patch")
    if not (sizes / size).is_dir() and (there := complete.sizes("")):
        do = "add it to patch.sizes in params.yaml, then `dvc repro patch`"
        raise ParamsError(
            "patch size", where=sizes, wanted=f"one of {', '.join(there)}", got=size, do=do
        )
    index = read_index(sizes / size / "index.parquet")
    kind = "standardized" if standardized else "raw"
    written = export_patches(load_prepared(Path("data/prepare")), index, out, limit, kind)
    values = {"patches": len(written), "folder": str(out)}
    tell(as_json, values, f"{len(written)} patches in {out}")


def task_at(path: Path | None) -> Task:
    """The task of a dataset.json, or of the one in a folder; without any, brain tumours.

    Raises:
        DataError: as `read_json` and `task_of`.
    """
    from gliotrail.dataset.description import DESCRIPTION, read_json, task_of

    if path is None:
        return BRATS
    where = path / DESCRIPTION if path.is_dir() else path
    return task_of(read_json(where), where)[0]


weights_app = typer.Typer(name="weights", no_args_is_help=True, help="Weights files.")


@weights_app.command("import")
def import_keras(
    file: Annotated[Path, typer.Argument(help="Keras' .h5 or .weights.h5.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors to write.")],
    channels: Annotated[
        str | None,
        typer.Option(help=f"The order of its inputs, such as {','.join(BRATS.channel_names)}."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help=f"The order of its outputs, such as {','.join(BRATS.class_names)}."),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="The dataset.json of its task; by default brain tumours."),
    ] = None,
    standardize: Annotated[
        Literal["foreground", "slice", "none"],
        typer.Option(help="How its inputs were standardised."),
    ] = "slice",
    as_json: Json = False,
) -> None:
    """Convert a 3-D U-Net's weights from Keras: whole models and weights files, any depth."""
    from gliotrail.files import replacing
    from gliotrail.segmentation.keras import read_keras
    from gliotrail.segmentation.weights import to_bytes

    check_output(out, ".safetensors")
    inputs = channels.split(",") if channels else None
    outputs = classes.split(",") if classes else None
    read = read_keras(file, inputs, outputs, standardize, task_at(dataset))
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


@weights_app.command("join")
def join_weights(
    files: Annotated[list[Path], typer.Argument(help="Weights files of networks that are alike.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors to write.")],
    register: Annotated[
        bool, typer.Option("--register", help="Also register it as a version.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Join several models, such as the folds of a cross-validation, to one that averages them."""
    from gliotrail.files import replacing
    from gliotrail.segmentation.ensemble import join

    check_output(out, ".safetensors")
    content = join(files)
    with replacing(out) as partial:
        partial.write_bytes(content)
    result = {"out": str(out), "members": len(files)}
    words = f"{len(files)} networks as one, in {out}"
    if register:
        from gliotrail.tracking.ensemble_run import register_ensemble

        version = register_ensemble(out, files)
        result |= {"model": version.name, "version": str(version.version)}
        words += f"; registered as models:/{version.name}/{version.version}"
    tell(as_json, result, words)
