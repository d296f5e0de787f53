"""Brain tumours: the preset of the BraTS challenges and the Decathlon's Task01.

Its names for channels, classes and regions are used wherever a data set is one of brain tumours,
whatever its own words: `t1ce`, `t1c` and `T1gd` are the same channel. Label codes differ from
release to release; SCHEMES has them.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from gliotrail.dataset.task import Channel, Class, Region, Task

BRATS: Final = Task(
    name="brain tumours",
    channels=tuple(Channel(name=name) for name in ("FLAIR", "T1w", "T1gd", "T2w")),
    classes=(
        Class(name="edema", code=1),
        Class(name="non_enhancing", code=2),
        Class(name="enhancing", code=3),
    ),
    regions=(
        Region(name="WT", labels=(1, 2, 3), written=1),
        Region(name="TC", labels=(2, 3), written=2),
        Region(name="ET", labels=(3,), written=3),
    ),
)
"""The Decathlon's Task01: whole tumour, tumour core and enhancing tumour are nested."""
EDEMA, NON_ENHANCING, ENHANCING = 1, 2, 3
"""Labels of BRATS."""

SHOWN: Final = ("FLAIR", "T1gd")
"""The channels of pictures with room for two."""
COLOURS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "edema": "#56B4E9",
        "non_enhancing": "#D55E00",
        "enhancing": "#F0E442",
        "WT": "#9D7BFF",
        "TC": "#CC79A7",
        "ET": "#F0E442",  # the region ET is the class enhancing, voxel by voxel
    }
)
SPOKEN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "non_enhancing": "non-enhancing",
        "WT": "WT, whole tumour",
        "TC": "TC, tumour core",
        "ET": "ET, enhancing",
    }
)
"""Names in legends, where they differ from the name itself."""

SCHEMES: Final[Mapping[str, Mapping[int, int]]] = MappingProxyType(
    {
        "msd": {0: 0, 1: EDEMA, 2: NON_ENHANCING, 3: ENHANCING},
        "brats21": {0: 0, 1: NON_ENHANCING, 2: EDEMA, 4: ENHANCING},
        "brats23": {0: 0, 1: NON_ENHANCING, 2: EDEMA, 3: ENHANCING},
        "brats15": {0: 0, 1: NON_ENHANCING, 2: EDEMA, 3: NON_ENHANCING, 4: ENHANCING},
        "brats24-gli": {0: 0, 1: NON_ENHANCING, 2: EDEMA, 3: ENHANCING, 4: 4},
        "brats24-ped": {0: 0, 1: ENHANCING, 2: NON_ENHANCING, 3: 4, 4: EDEMA},
    }
)
"""Each scheme's codes -> labels of `scheme_task`. brats21 is of 2017 to 2021; it and brats23 were
verified on BRATS_001 to 003 (data provenance), the others are as the challenges describe them."""
_FOURTH: Final = {"brats24-gli": "resection_cavity", "brats24-ped": "cystic"}

_CHANNELS: Final = {
    "flair": "FLAIR", "t2f": "FLAIR",
    "t1w": "T1w", "t1": "T1w", "t1n": "T1w",
    "t1gd": "T1gd", "t1ce": "T1gd", "t1c": "T1gd", "t1post": "T1gd",
    "t2w": "T2w", "t2": "T2w",
}  # fmt: skip
_CLASSES: Final = {
    "edema": "edema", "peritumoral_edema": "edema", "snfh": "edema",
    "non_enhancing": "non_enhancing", "netc": "non_enhancing", "ncr": "non_enhancing",
    "necrosis": "non_enhancing", "ncr_net": "non_enhancing",
    "enhancing": "enhancing", "et": "enhancing",
}  # fmt: skip


def scheme_task(scheme: str) -> tuple[Task, Mapping[int, int]]:
    """The task of a scheme's scans, with the labels as codes; and its codes -> labels.

    After treatment (2024) there is the resection cavity, which is in no region; in children (2024)
    the cystic component, which is part of the tumour core.
    """
    codes = SCHEMES[scheme]
    if scheme not in _FOURTH:
        return BRATS, codes
    classes = (*BRATS.classes, Class(name=_FOURTH[scheme], code=4))
    regions = BRATS.regions
    if scheme == "brats24-ped":
        regions = (
            Region(name="WT", labels=(1, 2, 3, 4), written=1),
            Region(name="TC", labels=(2, 3, 4), written=2),
            Region(name="ET", labels=(3,), written=3),
        )
    return BRATS.model_copy(update={"classes": classes, "regions": regions}), codes


def channel_name(name: str) -> str:
    """The usual name of an MR channel: `t1ce`, `T1gd` and `t1c` are all T1gd; others stay."""
    return _CHANNELS.get(name.strip().lower(), name)


def class_name(name: str) -> str | None:
    """The brain tumour class of a name: `non-enhancing tumor` is non_enhancing."""
    plain = re.sub(r"[\s_/-]+", "_", name.strip().lower())
    plain = re.sub(r"_tumou?r(_core)?$", "", plain).replace("oedema", "edema")
    return _CLASSES.get(plain)


def is_brats(task: Task) -> bool:
    """Whether channels and classes are the preset's, in its order, whatever the codes."""
    return (
        task.channel_names == BRATS.channel_names
        and task.class_names == BRATS.class_names
        and task.region_labels == BRATS.region_labels
    )


def codes_of_classes(names: Mapping[int, str]) -> tuple[int, ...] | None:
    """The codes of the preset's classes in its order, if the names by code are exactly those."""
    codes = {class_name(name): code for code, name in names.items()}
    if len(names) != len(BRATS.classes) or set(codes) != set(BRATS.class_names):
        return None
    return tuple(codes[name] for name in BRATS.class_names)


def codes_of_regions(regions: Sequence[tuple[str, frozenset[int]]]) -> tuple[int, ...] | None:
    """The codes of the preset's classes, if three regions are WT, TC and ET, each in the other."""
    initials = [re.sub(r"[^a-z]", "", name.lower())[:1] for name, _ in regions]
    sizes = [len(codes) for _, codes in regions]
    if initials not in (["w", "t", "e"], ["w", "c", "e"]) or sizes != [3, 2, 1]:
        return None
    whole, core, enhancing = (codes for _, codes in regions)
    if not whole > core > enhancing:
        return None
    return (*(whole - core), *(core - enhancing), *enhancing)
