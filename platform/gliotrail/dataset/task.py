"""The task of a data set, of any organ: its channels, classes and nested regions.

Inside Gliotrail a label is a class's place: 0 is background, 1 the first class, 2 the second, and
IGNORED marks voxels whose truth is unknown. The codes in a data set's files are translated when a
file is read or written.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

IGNORED: Final = 255
"""The label of voxels whose class is unknown."""
MOST_CLASSES: Final = 254

Kind = Literal["MR", "CT", "none"]
"""How a channel's values are standardised: MR (and all else without a unit of its own) by each
case's foreground, CT (Hounsfield units) by the whole data set's, `none` not at all."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")]
"""A channel's, class's or region's name: fits a metric's key, a file's name and a column."""
Label = Annotated[int, Field(ge=1, le=MOST_CLASSES)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Channel(_Part):
    """One image of a scan."""

    name: Name
    kind: Kind = "MR"


class Class(_Part):
    """A class of voxels; `code` is its number in the data set's label files."""

    name: Name
    code: Annotated[int, Field(ge=1, le=255)]


class Region(_Part):
    """Several classes together, as labels.

    written: the label that its voxels get when regions become labels, one region after the other,
        later ones over earlier ones (nnU-Net's `regions_class_order`).
    """

    name: Name
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    written: Label


class Task(_Part):
    """A data set's own description, in one form for all dialects.

    classes: the class at place n (from 1) is the label n.
    regions: in the order in which they are written back; none if there are only classes.
    ignore: the code of voxels whose truth is unknown, if the data set has one.
    """

    name: str = ""
    channels: Annotated[tuple[Channel, ...], Field(min_length=1, max_length=64)]
    classes: Annotated[tuple[Class, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    regions: tuple[Region, ...] = ()
    ignore: Annotated[int, Field(ge=1, le=255)] | None = None
    file_ending: str = ".nii.gz"
    licence: str = ""
    reference: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, names in (
            ("channel", self.channel_names),
            ("class or region", (*self.class_names, *self.region_names)),
        ):
            # the same name in other letters would be the same file on some disks
            lower = [name.lower() for name in names]
            if twice := [name for name in names if lower.count(name.lower()) > 1]:
                raise ValueError(f"the {what} {twice[0]} is there twice")
        codes = [*(c.code for c in self.classes), *([self.ignore] if self.ignore else [])]
        if twice_code := [code for code in codes if codes.count(code) > 1]:
            raise ValueError(f"the code {twice_code[0]} is there twice")
        for region in self.regions:
            if max(*region.labels, region.written) > len(self.classes):
                raise ValueError(f"the region {region.name} has a class that is not there")
            if region.written not in region.labels:
                code = self.classes[region.written - 1].code
                raise ValueError(
                    f"regions_class_order: the region {region.name} is written as {code}, "
                    "which is none of its codes"
                )
        return self

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels' names, in the order of a network's inputs."""
        return tuple(channel.name for channel in self.channels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name at place n (from 0) is that of the label n + 1."""
        return tuple(one.name for one in self.classes)

    @property
    def region_names(self) -> tuple[str, ...]:
        """The regions' names, in the order in which they are written back."""
        return tuple(region.name for region in self.regions)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all that is measured: classes, then regions."""
        return (*self.class_names, *self.region_names)

    @property
    def class_labels(self) -> Mapping[str, tuple[int, ...]]:
        """Each class's label, as `region_labels` has those of each region."""
        return {name: (label,) for label, name in enumerate(self.class_names, start=1)}

    @property
    def region_labels(self) -> Mapping[str, tuple[int, ...]]:
        """Each region's labels."""
        return {region.name: region.labels for region in self.regions}

    @property
    def n_labels(self) -> int:
        """The number of labels, background included."""
        return len(self.classes) + 1

    @property
    def labels_of_codes(self) -> Mapping[int, int]:
        """The code in a file -> the label; 0 is background in both."""
        known = {0: 0} | {one.code: label for label, one in enumerate(self.classes, start=1)}
        return known | ({self.ignore: IGNORED} if self.ignore is not None else {})

    @property
    def codes_of_labels(self) -> Mapping[int, int]:
        """The inverse of `labels_of_codes`."""
        return {label: code for code, label in self.labels_of_codes.items()}


def as_name(text: str) -> str:
    """A text as a `Name`: `whole tumor (WT)` is whole_tumor_WT."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text.strip()).strip("_.-")[:60]
