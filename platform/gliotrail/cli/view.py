"""`gliotrail view`."""

import webbrowser
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from gliotrail.cli.prepared import case_named
from gliotrail.cli.show import Json, tell
from gliotrail.errors import DataError

MASKS = Path("results/evaluate/masks")


def view(
    name: Annotated[str, typer.Argument(metavar="CASE", help="A prepared case.")],
    mask: Annotated[
        Path | None, typer.Option(help=f"Labels to show beside the true ones; else {MASKS}'s.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write; else one of its own.")
    ] = None,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    as_json: Json = False,
) -> None:
    """Look at a case in the browser: modalities, truth and prediction, three planes and 3-D.

    The page is one file that loads nothing from elsewhere; `dvc repro` makes one of each test case.
    """
    from gliotrail.files import replacing
    from gliotrail.imaging.geometry import Box
    from gliotrail.imaging.nifti import in_ras, read_labels
    from gliotrail.imaging.prepared import read_labels_patch
    from gliotrail.places import state_dir
    from gliotrail.report.viewer import viewer_html

    case = case_named(name)
    labelled = case.voxels_per_label is not None
    truth = read_labels_patch(case, Box((0, 0, 0), case.ras_shape_vox)) if labelled else None
    made = MASKS / f"{name}.nii.gz"
    mask = mask or (made if made.is_file() else None)
    predicted = in_ras(read_labels(mask)) if mask else None
    if predicted is not None and not (
        predicted.shape_vox == case.ras_shape_vox
        and np.allclose(predicted.affine, case.affine_ras, atol=1e-3)
    ):
        raise DataError("grid", where=mask, wanted=f"that of {name}", got="another one")
    page = viewer_html(case, truth, None if predicted is None else predicted.array)
    out = out or state_dir() / "views" / f"{name}.html"
    with replacing(out) as partial:
        partial.write_text(page, encoding="utf-8")
    tell(as_json, {"page": str(out)}, str(out))
    if show:
        webbrowser.open(out.absolute().as_uri())
