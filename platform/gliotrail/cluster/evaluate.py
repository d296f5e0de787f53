"""Stage `evaluate`: segment and score the held-out patients, register the model, name the champion.

Every measure comes from the label map that is saved, as counts without epsilon, so that scoring
the saved mask gives `metrics.json` again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gliotrail.dataset.task import IGNORED, Task
from gliotrail.errors import DataError
from gliotrail.files import replacing, write_json
from gliotrail.imaging.formats.decathlon import Case, read_dataset
from gliotrail.imaging.geometry import Box, from_ras, to_ras, vox3
from gliotrail.imaging.header import read_header
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.nifti import Scan, in_ras, read_labels, write_labels
from gliotrail.imaging.prepare import read_scan
from gliotrail.imaging.prepared import (
    Floats,
    Prepared,
    PreparedCase,
    case_of_array,
    load_prepared,
    read_labels_patch,
    read_patch,
)
from gliotrail.imaging.resample import resample
from gliotrail.imaging.split import Region
from gliotrail.params import Evaluate, Params
from gliotrail.progress import progress, say
from gliotrail.report.evaluation_charts import Look, look, write_charts
from gliotrail.report.figures import figure_png
from gliotrail.report.overlays import draw_prediction, pick_slices
from gliotrail.report.viewer import viewer_html
from gliotrail.runs.journal import MODEL_FILE
from gliotrail.runs.lineage import digest_of
from gliotrail.segmentation.inference import predict_case, to_labels
from gliotrail.segmentation.loop import SCORE, World, device_here
from gliotrail.segmentation.metrics import (
    confusion,
    mean_defined,
    soft_dice_loss_scan,
)
from gliotrail.segmentation.postprocess import postprocessed
from gliotrail.segmentation.score import Score, score
from gliotrail.segmentation.validation import validate
from gliotrail.segmentation.weights import load
from gliotrail.tracking.evaluation_record import record_evaluation

_TOLD: Final = ("dice", "sensitivity", "specificity", "hd95_mm")
_MEASURES: Final = (*_TOLD, "specificity_brain")
_HASH_LENGTH: Final = 16
MEASURES_VERSION: Final = 1
"""Goes up when a measure's definition changes: champions are then judged again."""


def evaluate(
    params: Params,
    prepared_folder: Path = Path("data/prepare"),
    raw: Path = Path("data/fetch"),
    trained: Path = Path("results/train"),
    out: Path = Path("results/evaluate"),
) -> None:
    """Write masks, measures, pictures and viewers to `out`; then tell MLflow and the registry.

    Raises:
        DataError, WeightsError: scans or weights that can't be used.
        TrackingError: the outputs are written, but MLflow doesn't know the run.
    """
    section = params.evaluate
    prepared = load_prepared(prepared_folder)
    if not prepared.split.test:
        say("evaluate: prepare.split.test names no patient: the model is registered unmeasured")
    task, dataset = prepared.task, read_dataset(raw)
    scans = {case.name: case for case in dataset.cases}
    if gone := set(prepared.split.test) - set(scans):
        do = "run `dvc repro prepare` again"
        raise DataError(f"no scan of {', '.join(sorted(gone))}", where=raw, do=do)
    model, description = load(trained / MODEL_FILE)
    model.to(device_here())
    scores: dict[str, Score] = {}
    losses: dict[str, float] = {}
    looks: dict[str, Look] = {}
    confusion_rp = np.zeros((task.n_labels, task.n_labels), np.int64)
    with replacing(out) as partial, progress(len(prepared.split.test), "evaluate", "cases") as done:
        (partial / "masks").mkdir(parents=True)
        (partial / "pictures").mkdir()
        (partial / "viewers").mkdir()
        for name in prepared.split.test:
            case = prepared.cases[name]
            probabilities_CIJK = predict_case(model, case, description.standardize)
            case, image_CIJK, ref_IJK = _as_scanned(
                case, scans[name], dataset.channel_order, prepared
            )
            probabilities_CIJK = _on_grid_of(case, prepared.cases[name], probabilities_CIJK)
            pred_IJK = to_labels(probabilities_CIJK, section.threshold, model.heads)
            pred_IJK = postprocessed(pred_IJK, description.postprocess, task, case.spacing_mm)
            losses[name] = soft_dice_loss_scan(probabilities_CIJK, ref_IJK)
            body_IJK = (image_CIJK != 0).any(axis=0)
            scores[name] = score(ref_IJK, pred_IJK, case.spacing_mm, body_IJK, task=task)
            confusion_rp += confusion(ref_IJK, pred_IJK, task.n_labels)
            _write_mask(partial / "masks" / f"{name}.nii.gz", case, scans[name], pred_IJK, task)
            ref_IJK = np.where(ref_IJK == IGNORED, np.uint8(0), ref_IJK)
            looks[name] = look(image_CIJK, ref_IJK, pred_IJK, case.spacing_mm, task)
            drawing = draw_prediction(
                image_CIJK,
                ref_IJK,
                pred_IJK,
                pick_slices(ref_IJK, 4),
                case.spacing_mm,
                f"{name}, held out",
                task=task,
            )
            (partial / "pictures" / f"{name}.png").write_bytes(figure_png(drawing))
            page = viewer_html(case, ref_IJK, pred_IJK, task=task)
            (partial / "viewers" / f"{name}.html").write_text(page, encoding="utf-8")
            done(1)
        if scores:
            write_charts(partial / "charts", scores, looks, confusion_rp, task)
        else:
            (partial / "charts").mkdir()
        measured = summary(scores, losses, task)
        write_json(partial / "metrics.json", measured)
        (partial / "measures").mkdir()
        for name, row in rows_of(measured, task).items():
            write_json(partial / "measures" / f"{name}.json", row)
        by_case = {name: s.model_dump(mode="json") for name, s in scores.items()}
        write_json(partial / "cases.json", by_case)
    record(trained, out, prepared, section)


def _as_scanned(
    case: PreparedCase, files: Case, channel_order: Sequence[int], prepared: Prepared
) -> tuple[PreparedCase, npt.NDArray[Any], Labels]:
    """A case on its scan's own grid in RAS+: as it was prepared, or read again if resampled."""
    if not case.resampled:
        whole = Box((0, 0, 0), case.ras_shape_vox)
        return case, read_patch(case, whole, "none"), read_labels_patch(case, whole)
    assert files.label is not None
    task = prepared.task
    scan = read_scan(files, len(task.channels))
    ras = in_ras(scan)
    image_CIJK = np.moveaxis(ras.array, 3, 0)
    if len(files.images) == 1:
        image_CIJK = image_CIJK[list(channel_order)]
    own = case_of_array(image_CIJK, ras.affine, case.name, task.channels, prepared.intensities)
    own = replace(own, file_affine=case.file_affine, file_shape_vox=case.file_shape_vox)
    labels = read_labels(files.label, like=scan, codes=task.labels_of_codes)
    ref_IJK = to_ras(labels.array, scan.affine)[0]
    whole = Box((0, 0, 0), own.ras_shape_vox)
    return own, read_patch(own, whole, "none"), ref_IJK


def _on_grid_of(own: PreparedCase, case: PreparedCase, probabilities_CIJK: Floats) -> Floats:
    """Probabilities on the scan's own grid."""
    if not case.resampled:
        return probabilities_CIJK
    grids = case.spacing_mm, own.ras_shape_vox, own.spacing_mm
    return np.stack([resample(p_IJK, *grids) for p_IJK in probabilities_CIJK])


def _write_mask(path: Path, case: PreparedCase, scan: Case, pred_IJK: Labels, task: Task) -> None:
    """The mask on the scan's own grid, with the geometry of its file, in the data set's codes."""
    mask = from_ras(pred_IJK, case.file_affine)
    like = Scan(mask, read_header(scan.image))
    write_labels(path, mask, like=like, codes=task.codes_of_labels)


def summary(scores: Mapping[str, Score], losses: Mapping[str, float], task: Task) -> dict[str, Any]:
    """`metrics.json`: means over the test cases, and how many of them have a defined Dice."""
    values: dict[str, Any] = {
        "cases": len(scores),
        "classes": list(task.class_names),
        "regions": list(task.region_names),
        "soft_dice_loss": mean_defined(losses.values()).value,
    }
    for kind, names in (("classes", task.class_names), ("regions", task.region_names)):
        for name in names:
            of = [getattr(s, kind)[name] for s in scores.values()]
            values[name] = {
                measure: mean_defined(getattr(m, measure) for m in of).value
                for measure in _MEASURES
            }
            values[name]["defined"] = mean_defined(m.dice for m in of).n
        of_each = [values[name]["dice"] for name in names or task.class_names]
        values[f"mean_{kind}"] = mean_defined(of_each).value
    return values


def rows_of(metrics: Mapping[str, Any], task: Task) -> dict[str, dict[str, Any]]:
    """`metrics.json` as the rows of `dvc metrics show`: a file a row, the same few keys in each."""
    rows = {
        name: {key: metrics[name][key] for key in _TOLD} | {"cases": metrics[name]["defined"]}
        for name in task.names
    }
    means = {f"mean_{kind}": {"dice": metrics[f"mean_{kind}"]} for kind in ("classes", "regions")}
    means["mean_classes"]["soft_dice_loss"] = metrics["soft_dice_loss"]
    return rows | means


def record(trained: Path, out: Path, prepared: Prepared, section: Evaluate) -> None:
    """Add the scores to the training's run, register the model, and see who is champion.

    It can be repeated: nothing is logged twice, and the run keeps its status.

    Raises:
        TrackingError: MLflow doesn't know the run.
    """
    run = json.loads((trained / "run.json").read_text())
    metrics = json.loads((out / "metrics.json").read_text())
    shown = [
        path for of in ("pictures", "viewers", "charts") for path in sorted((out / of).iterdir())
    ]
    told = record_evaluation(
        run,
        trained / MODEL_FILE,
        measures_of(metrics, prepared.task),
        [*shown, out / "metrics.json", out / "cases.json"],
        judged_on=_judged_on(prepared, prepared.split.validation, section.threshold),
        trained_on=trained_on(prepared),
        rescore=lambda weights, seen: _rescored(
            trained / MODEL_FILE, weights, prepared, unseen(prepared, seen), section.threshold
        ),
        caveat="; ".join(_caveats(prepared)),
    )
    say(told)


def _caveats(prepared: Prepared) -> Iterator[str]:
    """Why the figures are little to go by, if so."""
    validation = prepared.split.validation
    if len(validation) == 1 and validation[0].box is not None:
        yield f"validation is one block of one patient, {validation[0].case}: little to go by"
    if not prepared.split.test:
        yield "it is not measured on held-out patients: prepare.split.test names none"


def measures_of(metrics: Mapping[str, Any], task: Task) -> dict[str, float]:
    """`test/dice_WT` and so on, for MLflow, of what is defined in `metrics.json`."""
    points = {"test/soft_dice_loss": metrics["soft_dice_loss"]}
    for name in task.names:
        for measure in _TOLD:
            points[f"test/{measure}_{name}"] = metrics[name][measure]
    for kind in ("classes", "regions"):
        points[f"test/dice_mean_{kind}"] = metrics[f"mean_{kind}"]
    return {key: float(value) for key, value in points.items() if value is not None}


def _judged_on(prepared: Prepared, regions: Sequence[Region], threshold: float) -> str:
    """A digest of validation data, and of how they are measured."""
    inputs = [
        [region.case, str(region.box), prepared.cases[region.case].image_sha256,
         prepared.cases[region.case].label_sha256]
        for region in regions
    ]  # fmt: skip
    return digest_of([MEASURES_VERSION, threshold, inputs])


def trained_on(prepared: Prepared) -> str:
    """The training cases by their files' hashes, with the box that was kept out of each, if any."""
    told = []
    for name in prepared.split.training:
        box = prepared.split.kept_out.get(name)
        kept_out = f":{','.join(map(str, (*box.start_vox, *box.stop_vox)))}" if box else ""
        told.append(f"{prepared.cases[name].image_sha256[:_HASH_LENGTH]}{kept_out}")
    return " ".join(sorted(told))


def unseen(prepared: Prepared, told: str | None) -> list[Region]:
    """The validation data that a model with another `trained_on` was not trained on.

    None of them if it doesn't tell.
    """
    if told is None:
        return []
    kept_out = {digest: box for digest, _, box in (part.partition(":") for part in told.split())}

    def is_new(region: Region) -> bool:
        box = kept_out.get(prepared.cases[region.case].image_sha256[:_HASH_LENGTH])
        if not box:
            return box is None
        ends = [int(end) for end in box.split(",")]
        clear = Box(vox3(ends[:3]), vox3(ends[3:]))
        return region.box is not None and region.box.meet(clear) == region.box

    return [region for region in prepared.split.validation if is_new(region)]


def _rescored(
    ours: Path, theirs: Path, prepared: Prepared, regions: Sequence[Region], threshold: float
) -> tuple[float, float, str] | None:
    """What two models are worth on the same validation data, and which; None if there are none."""
    if not regions:
        return None
    first, second = (_score_on(weights, prepared, regions, threshold) for weights in (ours, theirs))
    return first, second, _judged_on(prepared, regions, threshold)


def _score_on(
    weights: Path, prepared: Prepared, regions: Sequence[Region], threshold: float
) -> float:
    model, description = load(weights)
    world = World(device=device_here())
    model.to(world.device)
    standardize, rules = description.standardize, description.postprocess
    validated = validate(
        model, prepared.task, prepared.cases, regions, standardize, threshold, world, rules=rules
    )
    return validated[SCORE]
