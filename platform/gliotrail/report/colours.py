"""One colour for each class, region and kind of error, the same in every picture.

Chosen to stay apart for the three common kinds of colour blindness, on the dark ground of all
pictures and over grey brain; tests/report/test_colours.py holds the distances. The classes' colours
are among Okabe and Ito's (Color Universal Design, 2008).
"""

from collections.abc import Mapping

from gliotrail.imaging.labels import CLASSES

CLASS_COLOURS: Mapping[str, str] = {
    "edema": "#56B4E9",
    "non_enhancing": "#D55E00",
    "enhancing": "#F0E442",
}
REGION_COLOURS: Mapping[str, str] = {
    "WT": "#9D7BFF",
    "TC": "#CC79A7",
    "ET": CLASS_COLOURS["enhancing"],  # the region ET is the class enhancing, voxel by voxel
}
ERROR_COLOURS: Mapping[str, str] = {
    "agreement": "#7BC043",
    "wrong_class": "#5B5BFF",
    "false_positive": "#FF5CA8",
    "false_negative": "#FFFFFF",
}
SPLIT_COLOURS: Mapping[str, str] = {"train": "#C9D1DB", "val": "#FF9F40", "test": "#8A6CFF"}
STATUS_COLOURS: Mapping[str, str] = {
    "FINISHED": "#56B4E9",
    "STOPPED": "#98A1AD",
    "FAILED": "#D55E00",
}
"""Of a sweep's trials."""
SERIES_COLOURS = ("#56B4E9", "#D55E00", "#F0E442", "#5B5BFF")
"""Of things that have no colour of their own, in their order; more begin anew."""

BACKGROUND = "#15181C"
FOREGROUND = "#F2F4F7"
FAINT = "#98A1AD"

FILL_ALPHA = 0.4
"""How opaque a class's fill is; outlines are opaque."""
AGREEMENT_ALPHA = 0.5
"""How opaque agreement is; errors are opaque, so that none is overlooked."""
ERROR_GROUND = 0.4
"""How bright the brain is below the picture of errors, as a share of its usual brightness."""

_SPOKEN = {
    "non_enhancing": "non-enhancing",
    "WT": "WT, whole tumour",
    "TC": "TC, tumour core",
    "ET": "ET, enhancing",
    "mean_classes": "mean",
    "mean_regions": "mean",
}


def rgb(colour: str) -> tuple[float, float, float]:
    """`#56B4E9` -> red, green, blue from 0 to 1."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def label_colours() -> tuple[str, ...]:
    """The colours of the labels 1, 2, 3."""
    return tuple(CLASS_COLOURS[name] for name in CLASSES)


def spoken(name: str) -> str:
    """A class, region or kind of error as a legend says it."""
    return _SPOKEN.get(name, name.replace("_", " "))
