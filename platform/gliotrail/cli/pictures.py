"""Pictures of one case: `gliotrail show`, `gliotrail view`; of results: `gliotrail pictures`."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from gliotrail.cli import complete
from gliotrail.cli.output import Json, check_output, tell
from gliotrail.dataset.task import Task
from gliotrail.errors import DataError, ParamsError

if TYPE_CHECKING:  # of the extra `segment`, without which the other commands work
    from gliotrail.imaging.labels import Labels
    from gliotrail.imaging.prepared import PreparedCase

PREPARED: Final = Path("data/prepare")
ThemeOption = Annotated[Literal["dark", "light"], typer.Option(help="The ground of a .png.")]


def case_named(name: str, or_else: str = "") -> "PreparedCase":
    """A prepared case.

    Args:
        or_else: what else the command takes, for the message.

    Raises:
        DataError: there is no such case; the message names some.
    """
    from gliotrail.imaging.prepared import load_prepared

    cases = load_prepared(PREPARED).cases
    if name not in cases:
        known = ", ".join(sorted(cases)[:5]) + (", .." if len(cases) > 5 else "")
        wanted = f"one of {known}{or_else}"
        raise DataError("case", where=PREPARED, wanted=wanted, got=repr(name))
    return cases[name]


def show(
    case: Annotated[
        str,
        typer.Argument(
            metavar="CASE",
            help="A prepared case's name, or a 4-D NIfTI file.",
            autocompletion=complete.cases,
        ),
    ],
    slices: Annotated[
        str,
        typer.Option(
            "--slice", help="largest (slices of the classes), random, or a voxel such as 120,90,25."
        ),
    ] = "largest",
    seed: Annotated[int, typer.Option(help="The seed of --slice random.")] = 0,
    labels: Annotated[Path | None, typer.Option(help="A mask to outline, for a file.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .png, or a .gif through all slices.")
    ] = None,
    window: Annotated[bool, typer.Option("--window", help="Open it in a window.")] = False,
    theme: ThemeOption = "dark",
    as_json: Json = False,
) -> None:
    """Draw a case: three planes of its channels, the classes outlined; or an animation."""
    if slices not in {"largest", "random"} and not _is_voxel(slices):
        raise ParamsError("--slice", wanted="largest, random or a voxel I,J,K", got=repr(slices))
    from gliotrail.imaging.labels import known_labels
    from gliotrail.imaging.prepared import read_task

    if Path(case).is_file():
        found, labels_IJK, task = _of_file(Path(case), labels)
    else:
        found, task = case_named(case, ", or a NIfTI file"), read_task(PREPARED)
        labels_IJK = known_labels(found.labels_IJK)
    path = out or Path(f"{found.name}.png")
    if path.suffix not in {".png", ".gif"}:
        raise ParamsError("output", wanted="a .png or .gif", got=str(path))
    if path.suffix == ".gif" and theme == "light":
        raise ParamsError("--theme light", wanted="a .png", got=str(path))

    from gliotrail.report.animation import write_gif
    from gliotrail.report.figures import save_figure
    from gliotrail.report.overlays import centre_voxel, draw_case, random_voxel
    from gliotrail.report.themes import in_theme

    result: dict[str, Any] = {"picture": str(path)}
    image_CIJK, start_vox = found.image_CIJK, found.box.start_vox
    if path.suffix == ".gif":
        write_gif(
            image_CIJK, labels_IJK, path, found.spacing_mm, found.name,
            first_k=start_vox[2], task=task,
        )  # fmt: skip
    else:
        at = centre_voxel(labels_IJK, image_CIJK)
        if slices == "random":
            at = random_voxel(image_CIJK, seed)
        elif slices != "largest":
            i, j, k = (int(n) - a for n, a in zip(slices.split(","), start_vox, strict=True))
            at = i, j, k
        drawing = draw_case(
            image_CIJK, labels_IJK, found.spacing_mm, found.name, at_vox=at,
            first_vox=start_vox, task=task,
        )  # fmt: skip
        save_figure(in_theme(drawing, theme), path)
        voxel = [n + a for n, a in zip(at, start_vox, strict=True)]
        result["voxel"] = voxel
    tell(as_json, result, str(path))
    if window:
        typer.launch(str(path.absolute()))


def _is_voxel(text: str) -> bool:
    return len(text.split(",")) == 3 and all(n.strip().isdecimal() for n in text.split(","))


def _of_file(path: Path, mask: Path | None) -> "tuple[PreparedCase, Labels | None, Task]":
    """A file's case, mask and task: brain tumours' channels if it has four, else numbered ones."""
    import numpy as np

    from gliotrail.dataset.brats import BRATS
    from gliotrail.dataset.task import Channel, Class
    from gliotrail.imaging.nifti import in_ras, read_image, read_labels
    from gliotrail.imaging.prepared import case_of_array

    scan = read_image(path)
    ras = in_ras(scan)
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    task, n_channels = BRATS, ras.array.shape[3]
    if n_channels != len(BRATS.channels):
        channels = tuple(Channel(name=f"channel_{n}") for n in range(n_channels))
        classes = tuple(Class(name=f"label_{n}", code=n) for n in range(1, 255))
        task = Task(channels=channels, classes=classes)
    case = case_of_array(np.moveaxis(ras.array, 3, 0), ras.affine, name, task.channels)
    if mask is None:
        return case, None, task
    labels = in_ras(read_labels(mask, like=scan, codes=task.labels_of_codes)).array
    if task is not BRATS:  # a legend of what is there
        task = task.model_copy(update={"classes": task.classes[: max(1, int(labels.max()))]})
    return case, labels[case.box.slices], task


def pictures(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write to.")],
    theme: ThemeOption = "dark",
    as_json: Json = False,
) -> None:
    """Draw the pictures of results/ again: curves, sweep, measures, held-out cases."""
    from gliotrail.imaging.prepared import load_prepared
    from gliotrail.report.figures import save_figure
    from gliotrail.report.redraw import redrawn
    from gliotrail.report.themes import in_theme

    made = []
    for name, drawing in redrawn(Path("results"), load_prepared(PREPARED)):
        made.append(str(out / f"{name}.png"))
        save_figure(in_theme(drawing, theme), out / f"{name}.png")
    tell(as_json, {"pictures": made}, *made)


MASKS = Path("results/evaluate/masks")


def view(
    name: Annotated[
        str,
        typer.Argument(metavar="CASE", help="A prepared case.", autocompletion=complete.cases),
    ],
    mask: Annotated[
        Path | None, typer.Option(help=f"Labels beside the true ones; by default those in {MASKS}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write; by default CASE.html.")
    ] = None,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    as_json: Json = False,
) -> None:
    """Look at a case in the browser: modalities, truth and prediction, three planes and 3-D.

    The page is one file that loads nothing from elsewhere; `dvc repro` makes one of each test case.
    """
    import numpy as np

    from gliotrail.files import replacing
    from gliotrail.imaging.geometry import Box
    from gliotrail.imaging.nifti import in_ras, read_labels
    from gliotrail.imaging.prepared import read_labels_patch, read_task
    from gliotrail.paths import state_dir
    from gliotrail.report.viewer import viewer_html

    if out:
        check_output(out, ".html")
    case = case_named(name)
    labelled = case.voxels_per_label is not None
    truth = read_labels_patch(case, Box((0, 0, 0), case.ras_shape_vox)) if labelled else None
    task = read_task(PREPARED)
    made = MASKS / f"{name}.nii.gz"
    mask = mask or (made if made.is_file() else None)
    predicted = in_ras(read_labels(mask, codes=task.labels_of_codes)) if mask else None
    if predicted is not None and not (
        predicted.shape_vox == case.ras_shape_vox
        and np.allclose(predicted.affine, case.affine_ras, atol=1e-3)
    ):
        raise DataError("grid", where=mask, wanted=f"that of {name}", got="another one")
    page = viewer_html(case, truth, None if predicted is None else predicted.array, task=task)
    out = out or state_dir() / "views" / f"{name}.html"
    with replacing(out) as partial:
        partial.write_text(page, encoding="utf-8")
    tell(as_json, {"page": str(out)}, str(out))
    if show:
        webbrowser.open(out.absolute().as_uri())
