"""What can't be trained rightly, refused before anything starts."""

from collections.abc import Sequence

from gliotrail.distributed.driver import data_of, first_network, spacing_of, window_of
from gliotrail.distributed.training import Training
from gliotrail.errors import ParamsError, WeightsError
from gliotrail.imaging.geometry import by_mm, same_spacing
from gliotrail.imaging.prepared import Prepared
from gliotrail.params import format_size
from gliotrail.segmentation import weights
from gliotrail.segmentation.unet import check_size, receptive_radius_vox, stride


def check(trainings: Sequence[Training]) -> None:
    """Refuse what can't be trained, before anything starts. All are on the same data.

    Raises:
        ParamsError: a size that the network can't halve; a budget of no step; no validation data,
            or data that the network sees while it is trained; synthetic tumours that don't fit.
        DataError: as `load_prepared`.
        WeightsError: first weights of another network, other channels or classes, or other scans.
    """
    prepared = data_of(trainings[0])
    if prepared and not prepared.split.validation:
        do = "name cases, a share or a block in prepare.split.validation"
        raise ParamsError("no validation data to judge a training on", do=do)
    for training in trainings:
        depth = training.section.model.depth
        check_size(training.size_vox, depth)
        if window_of(training) and set(training.size_vox) == {stride(depth)}:
            wanted = f"more than {stride(depth)} along some axis, or nothing is left to normalise"
            raise ParamsError("patch size", wanted=wanted, got=format_size(training.size_vox))
        if 2 * training.section.epoch_voxels < training.voxels_per_step:
            size = format_size(training.size_vox)
            wanted = f"one step's, {training.section.batch_size} x {size}, or more"
            raise ParamsError("epoch_voxels", wanted=wanted, got=training.section.epoch_voxels)
        first_network(training)
        if prepared:
            _check_margin(training, prepared)
            _check_spacing(training, prepared)


def _check_margin(training: Training, prepared: Prepared) -> None:
    """Of a network that is shown what lies around a validation block: it may be no training data.

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


def _check_spacing(training: Training, prepared: Prepared) -> None:
    """What the network has seen, and is shown beside the real patches, must be of their spacing.

    Raises:
        WeightsError: the first weights are of another.
        ParamsError: synthetic tumours are of another, or standardised in another way.
    """
    section, own_mm = training.section, spacing_of(prepared)
    if training.init:
        trained_mm = weights.read(training.init)[1].spacing_mm
        if not same_spacing(trained_mm, own_mm):
            what = f"train.init: {section.init}: spacing"
            do = "resample the scans, or take `train.init: scratch`"
            raise WeightsError(what, wanted=by_mm(own_mm), got=by_mm(trained_mm), do=do)
    if section.rehearsal and not (
        section.standardize == "brain" and same_spacing(weights.CUBE_MM, own_mm)
    ):
        raise ParamsError(
            "train.rehearsal",
            wanted=f"0: synthetic tumours are of {by_mm(weights.CUBE_MM)}, standardize brain",
            got=f"{section.rehearsal:g} beside scans of {by_mm(own_mm)}, {section.standardize}",
        )
