"""`gliotrail show`."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gliotrail.cli.prepared import case_named
from gliotrail.cli.show import Json, tell
from gliotrail.errors import ParamsError
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.prepared import PreparedCase


def show(
    case: Annotated[
        str, typer.Argument(metavar="CASE", help="A prepared case's name, or a 4-D NIfTI file.")
    ],
    slices: Annotated[
        str,
        typer.Option(
            "--slice", help="tumour (its largest slices), random, or a voxel such as 120,90,25."
        ),
    ] = "tumour",
    seed: Annotated[int, typer.Option(help="Of --slice random.")] = 0,
    labels: Annotated[Path | None, typer.Option(help="A mask to outline, for a file.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .png, or a .gif through all slices.")
    ] = None,
    window: Annotated[bool, typer.Option("--window", help="Open it in a window.")] = False,
    as_json: Json = False,
) -> None:
    """Draw a case: three planes of its four channels, the tumour outlined; or an animation."""
    if slices not in {"tumour", "random"} and not _is_voxel(slices):
        raise ParamsError("--slice", wanted="tumour, random or a voxel I,J,K", got=repr(slices))
    if Path(case).is_file():
        found, labels_IJK = _of_file(Path(case), labels)
    else:
        found = case_named(case, ", or a 4-D NIfTI file")
        labels_IJK = found.labels_IJK
    path = out or Path(f"{found.name}.png")
    if path.suffix not in {".png", ".gif"}:
        raise ParamsError("output", wanted="a .png or .gif", got=str(path))

    from gliotrail.report.animation import write_gif
    from gliotrail.report.figures import save_figure
    from gliotrail.report.overlays import centre_voxel, draw_case, random_voxel

    told: dict[str, Any] = {"picture": str(path)}
    image_CIJK, start_vox = found.image_CIJK, found.box.start_vox
    if path.suffix == ".gif":
        write_gif(
            image_CIJK, labels_IJK, path, found.spacing_mm, found.name, first_k=start_vox[2]
        )  # fmt: skip
    else:
        at = centre_voxel(labels_IJK, image_CIJK)
        if slices == "random":
            at = random_voxel(image_CIJK, seed)
        elif slices != "tumour":
            i, j, k = (int(n) - a for n, a in zip(slices.split(","), start_vox, strict=True))
            at = i, j, k
        drawing = draw_case(
            image_CIJK, labels_IJK, found.spacing_mm, found.name, at_vox=at, first_vox=start_vox
        )
        save_figure(drawing, path)
        voxel = [n + a for n, a in zip(at, start_vox, strict=True)]
        told["voxel"] = voxel
    tell(as_json, told, str(path))
    if window:
        typer.launch(str(path.absolute()))


def _is_voxel(text: str) -> bool:
    return len(text.split(",")) == 3 and all(n.strip().isdecimal() for n in text.split(","))


def _of_file(path: Path, mask: Path | None) -> tuple[PreparedCase, Labels | None]:
    from gliotrail.imaging.nifti import in_ras, read_image, read_labels
    from gliotrail.imaging.prepared import case_of_array

    scan = read_image(path)
    ras = in_ras(scan)
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    case = case_of_array(np.moveaxis(ras.array, 3, 0), ras.affine, name)
    if mask is None:
        return case, None
    return case, in_ras(read_labels(mask, like=scan)).array[case.box.slices]
