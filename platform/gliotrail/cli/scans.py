"""Commands on single scans."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import gliotrail
from gliotrail.cli.data import task_at
from gliotrail.cli.output import Json, number, print_json, print_table, table_of, tell
from gliotrail.errors import ParamsError
from gliotrail.progress import say
from gliotrail.runs.addresses import tracking_uri

if TYPE_CHECKING:
    from gliotrail.segmentation.segment import Trained

Scheme = Literal["msd", "brats21", "brats23"]
PROMOTED = "models:/gliotrail-unet3d@promoted"
SHIPPED = Path(gliotrail.__file__).parents[2] / "results/weights/brats-dynunet.safetensors"
THRESHOLD = 0.5  # for models without a recorded one


def score(
    ref: Annotated[Path, typer.Argument(metavar="REF", help="True labels, .nii or .nii.gz.")],
    pred: Annotated[
        Path, typer.Argument(metavar="PRED", help="Predicted labels, in the data set's codes.")
    ],
    ref_scheme: Annotated[
        Scheme | None, typer.Option(help="The label codes of REF (brain tumours only).")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="The dataset.json of the task; by default brain tumours."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a mask against the true one. Orientations may differ, but not the voxels."""
    from gliotrail.dataset.brats import BRATS
    from gliotrail.segmentation.score import score_files

    task = task_at(dataset)
    if ref_scheme and task.class_names != BRATS.class_names:
        got = f"one of {', '.join(task.class_names)}"
        raise ParamsError("--ref-scheme", wanted="a data set of brain tumours", got=got)
    found = score_files(ref, pred, ref_scheme, task)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    table = table_of("", "Dice", "sensitivity", "specificity", "HD95 mm", "ref ml", "pred ml")
    for kind in ("classes", "regions") if found.regions else ("classes",):
        mean = getattr(found, f"mean_{kind}")
        for name, row in [*getattr(found, kind).items(), (f"mean_{kind}", mean)]:
            cells = [number(getattr(row, key)) for key in ("dice", "sensitivity", "specificity")]
            cells += [number(row.hd95_mm, 1)]
            if row is not mean:
                cells += [number(row.volume_ref_ml, 1), number(row.volume_pred_ml, 1)]
            table.add_row(name, *cells, end_section=row is mean)
    print_table(table)
    for names, where in ((found.empty.ref, ref), (found.empty.pred, pred)):
        if names:
            print(f"no voxel of {', '.join(names)} in {where}")


def segment(
    out: Annotated[Path, typer.Option("--out", "-o", help="The mask to write.")],
    scan: Annotated[
        Path | None,
        typer.Argument(metavar="SCAN", help="One file of all channels, in the model's order."),
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Or a 3-D file a channel, such as CT=ct.nii.gz."),
    ] = None,
    flair: Annotated[Path | None, typer.Option(help="Brain tumours: the FLAIR file.")] = None,
    t1: Annotated[Path | None, typer.Option(help="Their T1 file.")] = None,
    t1gd: Annotated[Path | None, typer.Option(help="Their T1 with contrast agent.")] = None,
    t2: Annotated[Path | None, typer.Option(help="Their T2 file.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Weights file or model URI; several are averaged. By default {PROMOTED} (see "
            "`gliotrail promote`), else the weights that ship."
        ),
    ] = None,
    probabilities: Annotated[
        Path | None, typer.Option(help="A file for the probabilities of each class.")
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over mirror images, at 8 times the work.")
    ] = False,
    scheme: Annotated[
        Scheme | None, typer.Option(help="The mask's label codes (brain tumours only).")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept channels that are empty or the same.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="On the probability; by default the model's, or 0.5."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Segment a patient's scan, of any orientation and spacing; the mask is on the scan's grid."""
    given = _given(channel or [], {"FLAIR": flair, "T1w": t1, "T1gd": t1gd, "T2w": t2})
    if (scan is None) == (not given):
        wanted = (
            "one SCAN, or a file a channel: --channel NAME=FILE, or --flair, --t1, --t1gd, --t2"
        )
        got = [path.name for path in (scan, *given.values()) if path] or "none"
        raise ParamsError("scan", wanted=wanted, got=got)
    paths = [path for path in (scan, *given.values()) if path]
    from gliotrail.imaging.header import is_packed

    outputs = [path for path in (out, probabilities) if path]
    for path in outputs:
        is_packed(path)  # report a wrong name before the work
        if path.resolve() in {other.resolve() for other in paths} or outputs.count(path) > 1:
            raise ParamsError("output", wanted="a file of its own", got=str(path))

    from gliotrail.dataset.brats import BRATS, SCHEMES
    from gliotrail.imaging.header import odd_in, read_header
    from gliotrail.imaging.nifti import (
        read_channels,
        read_image,
        write_labels,
        write_probabilities,
    )
    from gliotrail.progress import say
    from gliotrail.segmentation import segment as work

    for line in odd_in(map(read_header, paths)):
        say(line)
    image = read_image(paths[0]) if scan else None  # report a bad scan before fetching a model
    models = model or [_default_model()]
    networks, theirs = zip(*(_trained(name) for name in models), strict=True)
    task = networks[0][1].task
    if scheme and not {*BRATS.class_names} <= {*task.class_names}:
        got = ", ".join(task.class_names)
        raise ParamsError("--scheme", wanted="a model of brain tumours", got=f"one of {got}")
    if image is None:
        known = {name.lower(): name for name in task.channel_names}
        given = {known.get(name.lower(), name): path for name, path in given.items()}
        if sorted(given) != sorted(task.channel_names):
            wanted, got = ", ".join(task.channel_names), ", ".join(given)
            do = " ".join(f"--channel {name}=FILE" for name in task.channel_names)
            raise ParamsError("channels of the model", wanted=wanted, got=got, do=do)
        image = read_channels([given[name] for name in task.channel_names])
    chosen = _one(theirs) if threshold is None else threshold
    done = work.segment(image, networks, chosen, tta, allow_missing)
    codes = task.codes_of_labels
    if scheme:
        codes = {label: code for code, label in SCHEMES[scheme].items()}
    write_labels(out, done.labels, image, codes)
    if probabilities:
        write_probabilities(probabilities, done.probabilities, image)
    values = {"mask": str(out), "probabilities": probabilities and str(probabilities)}
    tell(as_json, values, " and ".join(map(str, outputs)))


def _given(texts: Sequence[str], named: Mapping[str, Path | None]) -> dict[str, Path]:
    """Files by channel: `NAME=FILE` (any of BraTS' names for a channel), and the named options."""
    from gliotrail.dataset.brats import channel_name
    from gliotrail.dataset.task import as_name

    given = {name: path for name, path in named.items() if path}
    for text in texts:
        name, _, path = text.partition("=")
        name = as_name(channel_name(name))
        if not (name and path) or name in given:
            raise ParamsError("--channel", wanted="NAME=FILE, each name once", got=repr(text))
        given[name] = Path(path)
    return given


def _default_model() -> str:
    """The promoted version, else the weights that ship, with a message."""
    if _is_one_promoted():
        return PROMOTED
    if not SHIPPED.is_file():
        do = "no version was promoted by name, and no weights are installed"
        raise ParamsError("--model", wanted="a weights file", got="none", do=do)
    say(f"no model was promoted by name: taking the weights that ship, {SHIPPED.name}")
    return str(SHIPPED)


def _is_one_promoted() -> bool:
    """Whether a version is promoted; never outside of a checkout or without MLflow."""
    try:
        uri = tracking_uri()
        database = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and not database.is_file():
            return False
        from gliotrail.tracking.registry import is_promoted  # MLflow takes seconds to import
    except (ParamsError, ModuleNotFoundError):
        return False
    return is_promoted()


def _one(thresholds: Sequence[float]) -> float:
    if len(set(thresholds)) > 1:
        got = ", ".join(f"{value:g}" for value in sorted(set(thresholds)))
        raise ParamsError("threshold", wanted="one for all models", got=got, do="set --threshold")
    return thresholds[0]


def _trained(name: str) -> "tuple[Trained, float]":
    """The network and threshold of a weights file or of a registered model."""
    from gliotrail.segmentation.weights import load

    if ":/" not in name:
        return load(Path(name)), THRESHOLD
    try:
        from gliotrail.tracking.registry import fetch_weights, threshold_of
    except ModuleNotFoundError:
        do = "registered models need `pip install 'gliotrail[track]'`"
        raise ParamsError("--model", wanted="a weights file", got=name, do=do) from None

    with tempfile.TemporaryDirectory() as folder:
        return load(fetch_weights(name, Path(folder))), threshold_of(name, THRESHOLD)
