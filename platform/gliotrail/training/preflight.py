"""Checks of a training before anything starts."""

from collections.abc import Sequence
from typing import Final

from gliotrail.dataset.brats import BRATS, is_brats
from gliotrail.dataset.patients import of_same_patients
from gliotrail.dataset.task import Task
from gliotrail.errors import ParamsError, WeightsError
from gliotrail.imaging.geometry import by_mm, same_spacing
from gliotrail.imaging.prepared import Prepared
from gliotrail.imaging.split import Split
from gliotrail.param_types import format_size
from gliotrail.params import Model, Train
from gliotrail.progress import say
from gliotrail.segmentation import weights
from gliotrail.segmentation.unet import check_size, receptive_radius_vox, stride
from gliotrail.segmentation.validation import check_regions
from gliotrail.training.driver import data_of, model_of_weights, spacing_of, window_of
from gliotrail.training.inputs import VALIDATION_DO, Training
from gliotrail.training.own_check import check_own

TOO_GOOD: Final = "the first weights were trained on"


def check(trainings: Sequence[Training]) -> None:
    """Refuse what can't be trained, before anything starts. All are on the same data.

    Raises:
        ParamsError: a size that the network can't halve; a budget of no step; no validation data
            to choose weights or trials by, or data that the network sees in training; synthetic
            tumours or parts of your own that don't fit.
        DataError: as `load_prepared`.
        TrainingError: validation data without any class.
        WeightsError: first weights of another network, other channels or classes, or other scans.
    """
    prepared = data_of(trainings[0])
    if prepared and not prepared.split.validation:
        for key, asks, instead in (("keep", "best", "last"), ("postprocess", "validation", "none")):
            if any(getattr(training.section, key) == asks for training in trainings):
                do = f"{VALIDATION_DO}, or take train.{key}: {instead}"
                raise ParamsError(f"train.{key}: {asks}: no validation data", do=do)
        say("no validation data: the training is not measured")
    elif prepared:
        check_regions(prepared.task, prepared.cases, prepared.split.validation)
    if prepared:
        split = prepared.split
        known = dict.fromkeys(name for one in trainings for name in seen_before(one, split))
        if known:
            say(f"{TOO_GOOD} {', '.join(known)}, at least in part: figures may be too good")
    for training in trainings:
        check_own(training.section, training.size_vox, training.task)
        depth = training.section.model.depth
        check_size(training.size_vox, depth, training.section.model.space_to_depth)
        _check_heads(training.section.model, training.task)
        least = stride(depth) * training.section.model.space_to_depth
        if window_of(training) and set(training.size_vox) == {least}:
            wanted = f"more than {least} along some axis, or nothing is left to normalise"
            raise ParamsError("patch size", wanted=wanted, got=format_size(training.size_vox))
        if 2 * training.section.epoch_voxels < training.voxels_per_step:
            size = format_size(training.size_vox)
            wanted = f"one step's, {training.section.batch_size} x {size}, or more"
            raise ParamsError("epoch_voxels", wanted=wanted, got=training.section.epoch_voxels)
        _check_init(training, spacing_of(prepared))
        if prepared:
            _check_margin(training, prepared)
            _check_rehearsal(training.section, spacing_of(prepared), training.task)


def seen_before(training: Training, split: Split) -> tuple[str, ...]:
    """The validation and test cases whose patients the first weights were trained on."""
    if training.init is None:
        return ()
    judged = [*(region.case for region in split.validation), *split.test]
    return of_same_patients(weights.read(training.init)[1].trained_on, dict.fromkeys(judged))


def _check_heads(model: Model, task: Task) -> None:
    """Region heads need regions that are each the one before without its first class.

    Raises:
        ParamsError: the task's are not.
    """
    nested = [tuple(range(first, task.n_labels)) for first in range(1, task.n_labels)]
    if model.heads == "regions" and list(task.region_labels.values()) != nested:
        wanted = "regions that are each the one before without its first class"
        got = ", ".join(task.region_names) or "no regions"
        raise ParamsError("train.model.heads: regions", wanted=wanted, got=got, do="take classes")


def _check_margin(training: Training, prepared: Prepared) -> None:
    """Check that a network that sees around a validation block sees no training data.

    Raises:
        ParamsError: it sees farther than the block's margin.
    """
    if window_of(training):
        return
    radius_vox = receptive_radius_vox(training.section.model.depth)
    for region in prepared.split.validation:
        if region.box is not None:
            kept_out = prepared.split.kept_out[region.case]
            margin_vox = region.box.start_vox[0] - kept_out.start_vox[0]
            if margin_vox < radius_vox:
                wanted = f"at least {radius_vox}, which is how far the network sees"
                key = "prepare.split.validation.margin_vox"
                raise ParamsError(key, wanted=wanted, got=margin_vox)


def _check_init(training: Training, own_mm: tuple[float, float, float]) -> None:
    """Raise WeightsError if the first weights don't fit the training."""
    if training.init is None:
        return
    section, or_not = training.section, "or take `train.init: scratch`"
    state, description = weights.read(training.init)
    network = weights.build(description.model, training.task)
    if changed := weights.load_into(network, state, description, training.task, training.init):
        say(f"first weights of {section.init}: {'; '.join(changed)}")
    own, theirs = (model.model_dump() for model in (model_of_weights(training), description.model))
    if own != theirs:
        unlike = [key for key in own if own[key] != theirs[key]]
        wanted, got = (", ".join(f"{key} {of[key]}" for key in unlike) for of in (own, theirs))
        do = f"change train.model, {or_not}"
    elif description.standardize != section.standardize:
        wanted, got = f"standardize {section.standardize}", description.standardize
        do = f"set train.standardize to {got}"
    elif not same_spacing(description.spacing_mm, own_mm):
        wanted, got = f"scans of {by_mm(own_mm)}", by_mm(description.spacing_mm)
        do = f"resample the scans, {or_not}"
    else:
        return
    what = f"train.init: {section.init}"
    raise WeightsError(what, where=training.init, wanted=wanted, got=got, do=do)


def _check_rehearsal(section: Train, own_mm: tuple[float, float, float], task: Task) -> None:
    """Raise ParamsError if synthetic tumours have other classes, spacing or intensities."""
    if section.rehearsal and not is_brats(task):
        wanted = f"0: synthetic brain tumours have {', '.join(BRATS.channel_names)} and "
        wanted += f"{', '.join(BRATS.class_names)}"
        names = ", ".join((*task.channel_names, *task.class_names))
        got = f"{section.rehearsal:g} beside {names}"
        raise ParamsError("train.rehearsal", wanted=wanted, got=got)
    alike = section.standardize == "foreground" and same_spacing(weights.CUBE_MM, own_mm)
    if section.rehearsal and not alike:
        raise ParamsError(
            "train.rehearsal",
            wanted=f"0: synthetic tumours are of {by_mm(weights.CUBE_MM)}, standardize foreground",
            got=f"{section.rehearsal:g} beside scans of {by_mm(own_mm)}, {section.standardize}",
        )
