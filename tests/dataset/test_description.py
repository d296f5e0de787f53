"""`dataset.json` in both dialects, as the data set's own words or as the brain tumours' preset."""

from pathlib import Path

import pytest

from gliotrail.dataset.brats import BRATS, is_brats
from gliotrail.dataset.description import task_of
from gliotrail.dataset.task import IGNORED, Task
from gliotrail.errors import DataError

HERE = Path("dataset.json")
FOUR = {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}


def read(**values: object) -> Task:
    return task_of(values, HERE)[0]


def test_the_decathlons_dialect() -> None:
    task = read(
        name="Spleen",
        modality={"0": "CT"},
        labels={"0": "background", "1": "spleen"},
        licence="CC-BY-SA 4.0",
        reference="MSK",
    )
    assert (task.channel_names, task.channels[0].kind) == (("CT",), "CT")
    assert (task.class_names, task.region_names, task.n_labels) == (("spleen",), (), 2)
    assert (task.name, task.licence, task.reference) == ("Spleen", "CC-BY-SA 4.0", "MSK")


def test_nnu_nets_dialect() -> None:
    task = read(
        channel_names={"0": "T2", "1": "ADC"},
        labels={"background": 0, "Peripheral zone": 1, "transition zone": 5, "ignore": 6},
        file_ending=".nii",
    )
    assert task.channel_names == ("T2w", "ADC")
    assert task.class_names == ("Peripheral_zone", "transition_zone")
    assert task.labels_of_codes == {0: 0, 1: 1, 5: 2, 6: IGNORED}
    assert task.codes_of_labels[2] == 5
    assert task.file_ending == ".nii"


def test_kinds_are_told_by_name_or_by_a_key_of_their_own() -> None:
    names = {"0": "ct", "1": "noNorm", "2": "PET", "3": "mask"}
    task = read(channel_names=names, labels={"background": 0, "a": 1}, channel_kinds={"3": "none"})
    assert [channel.kind for channel in task.channels] == ["CT", "none", "MR", "none"]


def test_regions_are_labels_and_what_each_writes() -> None:
    task = read(
        channel_names={"0": "MRI"},
        labels={"background": 0, "kidney": [1, 2, 4], "mass": [2, 4], "tumor": [4]},
        regions_class_order=[1, 2, 4],
    )
    assert task.class_names == ("label_1", "label_2", "label_4")
    assert task.region_labels == {"kidney": (1, 2, 3), "mass": (2, 3), "tumor": (3,)}
    assert [region.written for region in task.regions] == [1, 2, 3]
    assert [one.code for one in task.classes] == [1, 2, 4]


def test_regions_beside_named_classes() -> None:
    values = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "lesion"}}
    task = read(**values, regions={"organ": [1, 2], "cancer": [2]})
    assert task.class_names == ("liver", "lesion")
    assert [(r.name, r.labels, r.written) for r in task.regions] == [
        ("organ", (1, 2), 1),
        ("cancer", (2,), 2),
    ]


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        {"background": 0, "Oedema": 1, "non_enhancing": 2, "enhancing": 3},
        {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
    ],
)
def test_brain_tumours_are_recognised(labels: dict[str, object]) -> None:
    task, order = task_of({"channel_names": FOUR, "labels": labels}, HERE)
    assert is_brats(task)
    assert [one.code for one in task.classes] == [1, 2, 3]
    assert order == (3, 0, 1, 2)


def test_brats_own_codes_are_told_from_the_decathlons_by_their_names() -> None:
    labels = {"background": 0, "NCR": 1, "edema": 2, "ET": 4}
    task = read(channel_names=FOUR, labels=labels)
    assert is_brats(task)
    assert task.labels_of_codes == {0: 0, 1: 2, 2: 1, 4: 3}
    labels = {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}
    assert read(channel_names=FOUR, labels=labels).labels_of_codes == {0: 0, 1: 2, 2: 1, 4: 3}


def test_one_channel_of_brain_tumours_keeps_the_regions() -> None:
    labels = {"0": "background", "1": "edema", "2": "non-enhancing", "3": "enhancing"}
    task = read(modality={"0": "FLAIR"}, labels=labels)
    assert task.region_labels == BRATS.region_labels
    assert not is_brats(task)


GOOD = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"modality": {"1": "CT"}}, 'modality: wanted names numbered "0", "1", ..'),
        ({"modality": {"0": "T1c", "1": "T1gd"}}, "modality: wanted each channel once, got T1c"),
        ({"modality": {"0": "??"}}, "modality 0: wanted a name of letters and digits"),
        ({"labels": {"1": "spleen"}}, "labels: wanted a background of 0"),
        ({"labels": {"background": 0}}, "classes: got ()"),
        ({"labels": {"background": 0, "a": 300}}, "labels a: wanted codes from 0 to 255, got 300"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "labels: wanted each code once, got 1"),
        ({"labels": {"background": 0, "a": 1, "A": 2}}, "the class or region a is there twice"),
        ({"channel_kinds": {"0": "XR"}}, "channel_kinds: wanted some of the channels' numbers"),
        ({"regions": {"all": [1, 2]}}, "regions: got all has the code 2, which no class has"),
        (
            {
                "labels": {"0": "background", "1": "a", "2": "b"},
                "regions": {"x": [1], "y": [2]},
            },
            "regions_class_order is missing, and regions are not nested in turn",
        ),
        (
            {
                "labels": {"0": "background", "1": "a", "2": "b"},
                "regions": {"in": [2], "all": [1, 2]},
                "regions_class_order": [1, 2],
            },
            "the region in is written as 1, which is none of its codes",
        ),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, object], told: str) -> None:
    with pytest.raises(DataError) as error:
        task_of(GOOD | change, HERE)
    assert told in str(error.value)
