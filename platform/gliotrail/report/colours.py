"""One colour for each class, region and kind of error, the same in every picture.

Chosen to stay apart for the three common kinds of colour blindness, on the dark ground of all
pictures and over grey scans; tests/report/test_colours.py holds the distances. The classes' colours
are among Okabe and Ito's (Color Universal Design, 2008).
"""

from collections.abc import Mapping

from gliotrail.dataset.brats import BRATS, COLOURS, SPOKEN
from gliotrail.dataset.task import Task

PALETTE = (
    "#56B4E9", "#D55E00", "#F0E442", "#9D7BFF", "#CC79A7", "#00A878",
    "#E69F00", "#5B5BFF", "#B5E48C", "#C44536", "#80DED9", "#FFC6FF",
)  # fmt: skip
"""For classes and regions without colours of their own, in their order; then from the start."""
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
"""By how a sweep's trial ended."""
SERIES_COLOURS = ("#56B4E9", "#D55E00", "#F0E442", "#5B5BFF")
"""For things without colours of their own, in their order; then from the start."""

BACKGROUND = "#15181C"
FOREGROUND = "#F2F4F7"
FAINT = "#98A1AD"

FILL_ALPHA = 0.4
"""How opaque a class's fill is; outlines are opaque."""
AGREEMENT_ALPHA = 0.5
"""How opaque agreement is; errors are opaque, so that none is overlooked."""
ERROR_GROUND = 0.4
"""How bright the scan is below the picture of errors, as a share of its usual brightness."""

_SPOKEN = {**SPOKEN, "mean_classes": "mean", "mean_regions": "mean"}


def colours_of(task: Task) -> Mapping[str, str]:
    """A colour for each class and region: brain tumours' own, else the palette's in turn."""
    own = {name: COLOURS[name] for name in task.names if name in COLOURS}
    free = [colour for colour in PALETTE if colour not in own.values()] or list(PALETTE)
    others = [name for name in task.names if name not in own]
    return {**own, **{name: free[n % len(free)] for n, name in enumerate(others)}}


def rgb(colour: str) -> tuple[float, float, float]:
    """`#56B4E9` -> red, green, blue from 0 to 1."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def label_colours(task: Task = BRATS) -> tuple[str, ...]:
    """The colours of the labels 1, 2, .."""
    colours = colours_of(task)
    return tuple(colours[name] for name in task.class_names)


def spoken(name: str) -> str:
    """The name of a class, region or kind of error in a legend."""
    return _SPOKEN.get(name, name.replace("_", " "))
