import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from gliotrail.dataset.brats import BRATS
from gliotrail.errors import TrainingError
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.prepared import Prepared, PreparedCase, read_labels_patch
from gliotrail.imaging.split import Region
from gliotrail.segmentation.inference import predict_case, to_labels
from gliotrail.segmentation.loop import SCORE, World
from gliotrail.segmentation.metrics import soft_dice_loss_scan
from gliotrail.segmentation.score import score
from gliotrail.segmentation.unet import UNet3d, initialize
from gliotrail.segmentation.validation import check_regions, validate
from tests.support.brain import CLASSES, REGIONS
from tests.support.gloo import Workers

WHOLE = Region("BRATS_119")
BLOCK = Region("BRATS_009", Box((10, 20, 3), (42, 50, 21)))
EDEMA_ALONE = Region("BRATS_119", Box((0, 0, 0), (10, 10, 10)))
REGIONS_THERE = (WHOLE, BLOCK, EDEMA_ALONE)
THRESHOLD = 0.4


def network(seed: int = 3) -> UNet3d:
    model = UNet3d(2, 2)
    initialize(model, seed)
    return model


def numbers(
    cases: Mapping[str, PreparedCase], regions: Sequence[Region], threshold: float = THRESHOLD
) -> dict[str, float]:
    return validate(network(), BRATS, cases, regions, "foreground", threshold, World())


def numbers_there(
    world: World, cases: Mapping[str, PreparedCase], regions: Sequence[Region]
) -> tuple[dict[str, float], list[Region]]:
    """On a worker: the numbers, and which regions it was shown."""
    shown: list[Region] = []
    watch = lambda region, labels: shown.append(region)  # noqa: E731 - as a caller does
    return validate(network(), BRATS, cases, regions, "foreground", THRESHOLD, world, watch), shown


def in_scan(case: PreparedCase, region: Region) -> Box:
    return region.box or Box((0, 0, 0), case.ras_shape_vox)


def mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def directly(
    cases: Mapping[str, PreparedCase], regions: Sequence[Region], threshold: float
) -> dict[str, float]:
    """From whole scans' predictions, cut out, by the measures that score saved masks."""
    losses, scores = [], []
    for region in regions:
        case = cases[region.case]
        box = in_scan(case, region)
        probabilities = predict_case(network(), case, "foreground")[:, *box.slices]
        ref = read_labels_patch(case, box)
        losses.append(soft_dice_loss_scan(probabilities, ref))
        scores.append(score(ref, to_labels(probabilities, threshold), case.spacing_mm))
    means: dict[str, float | None] = {"soft_dice_loss": mean(losses)}
    for name in CLASSES:
        for measure in ("dice", "sensitivity", "specificity"):
            of = [getattr(s.classes[name], measure) for s in scores]
            means[f"{measure}_{name}"] = mean(of)
    for name in REGIONS:
        means[f"dice_{name}"] = mean([s.regions[name].dice for s in scores])
    for kind, names in (("classes", CLASSES), ("regions", REGIONS)):
        means[f"dice_mean_{kind}"] = mean([means[f"dice_{name}"] for name in names])
    return {f"val/{name}": value for name, value in means.items() if value is not None}


@pytest.mark.parametrize(
    ("regions", "threshold"),
    [(REGIONS_THERE, 0.3), ((BLOCK,), 0.5), ((BLOCK,), 0.999999), ((EDEMA_ALONE,), 0.3)],
)
def test_the_numbers_are_those_of_the_measures(
    prepared_crops: Prepared, regions: tuple[Region, ...], threshold: float
) -> None:
    ours = numbers(prepared_crops.cases, regions, threshold)
    wanted = directly(prepared_crops.cases, regions, threshold)
    assert ours == pytest.approx(wanted, rel=1e-6)
    exact = ours.keys() - {"val/soft_dice_loss"}
    assert SCORE in exact
    if threshold < 0.9:
        assert len({ours[key] for key in exact}) > len(exact) / 2


def test_what_is_undefined_is_left_out(prepared_crops: Prepared) -> None:
    labels = read_labels_patch(prepared_crops.cases["BRATS_119"], EDEMA_ALONE.box)
    assert set(np.unique(labels)) == {0, 1}
    ours = numbers(prepared_crops.cases, [EDEMA_ALONE], threshold=0.999999)
    assert ours["val/dice_edema"] == ours["val/dice_WT"] == ours[SCORE] == 0
    assert ours["val/specificity_enhancing"] == 1
    missing = {"dice_non_enhancing", "dice_enhancing", "dice_TC", "dice_ET"}
    missing |= {"sensitivity_non_enhancing", "sensitivity_enhancing"}
    every = numbers(prepared_crops.cases, [WHOLE]).keys()
    assert every - ours.keys() == {f"val/{name}" for name in missing}


def test_two_workers_give_the_numbers_of_one(gloo: Workers, prepared_crops: Prepared) -> None:
    cases = prepared_crops.cases
    for regions in (REGIONS_THERE, REGIONS_THERE[:1]):
        (ours, shown), (others, shown_there) = gloo(2, numbers_there, cases, regions)
        assert ours == others == numbers(cases, regions)
        assert (shown, shown_there) == (list(regions[::2]), list(regions[1::2]))


def test_the_labels_shown_are_those_judged(prepared_crops: Prepared) -> None:
    shown: dict[Region, Labels] = {}
    cases = prepared_crops.cases
    validate(
        network(), BRATS, cases, REGIONS_THERE, "foreground", THRESHOLD, World(), shown.__setitem__
    )
    assert tuple(shown) == REGIONS_THERE
    for region, labels in shown.items():
        case = cases[region.case]
        box = in_scan(case, region)
        whole = to_labels(predict_case(network(), case, "foreground"), THRESHOLD)
        assert np.mean(labels != whole[box.slices]) < 1e-3
        assert len(np.unique(labels)) > 1


@pytest.mark.parametrize("threshold", [0.001, 0.5, 0.999999])
def test_no_tumour_anywhere_is_an_error_whatever_is_predicted(
    prepared_crops: Prepared, threshold: float
) -> None:
    case = prepared_crops.cases["BRATS_119"]
    healthy = Region("BRATS_119", Box((42, 0, 0), (52, 10, 10)))
    assert not read_labels_patch(case, in_scan(case, healthy)).any()
    with pytest.raises(TrainingError, match="validation data: no class in them"):
        check_regions(BRATS, prepared_crops.cases, [healthy, healthy])
    check_regions(BRATS, prepared_crops.cases, [healthy, WHOLE])
    for regions in ([healthy], [healthy, healthy], []):
        with warnings.catch_warnings(), pytest.raises(TrainingError) as refused:
            warnings.simplefilter("error")
            numbers(prepared_crops.cases, regions, threshold)
        assert str(refused.value) == (
            "validation data: no class in them: wanted at least one scan or block with "
            "edema or non_enhancing or enhancing; choose others in prepare.split.validation"
        )
    assert numbers(prepared_crops.cases, [healthy, WHOLE], threshold)[SCORE] >= 0


def test_the_network_is_left_as_it_was(prepared_crops: Prepared) -> None:
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    validate(model, BRATS, prepared_crops.cases, [BLOCK], "foreground", THRESHOLD, World())
    assert all(np.array_equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
