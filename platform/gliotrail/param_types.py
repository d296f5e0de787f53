"""Types for the values of params.yaml (sizes, shares, counts), which check themselves."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
)

FROM_SWEEP = "from_sweep"

Size = tuple[int, int, int]
"""A patch's size in voxels along i, j, k."""


def parse_size(text: object) -> Size:
    """`48x48x16` -> (48, 48, 16). Digits and two x, no spaces, no zero.

    Raises:
        ValueError: anything else.
    """
    if isinstance(text, str) and re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}x[1-9]\d{0,3}", text):
        i, j, k = (int(part) for part in text.split("x"))
        return i, j, k
    raise ValueError(f"a patch size such as 48x48x16 is wanted, got {text!r}")


def format_size(size: Size) -> str:
    """(48, 48, 16) -> `48x48x16`."""
    return "x".join(str(n) for n in size)


def _size_or_sweep(value: object) -> Size | str:
    return FROM_SWEEP if value == FROM_SWEEP else parse_size(value)


def _size_text(value: Size | str) -> str:
    return value if isinstance(value, str) else format_size(value)


def _rate_or_sweep(value: object) -> float | str:
    if value == FROM_SWEEP:
        return FROM_SWEEP
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise ValueError(f"a number above 0 and at most 1, or {FROM_SWEEP}, is wanted, got {value!r}")


OWN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""A part of your own (see `own_parts`): `my_package.module:Name`."""


def one_of_or_own(*known: str) -> Callable[[object], str]:
    """A check of a word: one of those known, or the name of a part of your own."""

    def check(value: object) -> str:
        if isinstance(value, str) and (value in known or OWN_NAME.fullmatch(value)):
            return value
        wanted = ", ".join((*known, "your own my_package.module:Name"))
        raise ValueError(f"one of {wanted} is wanted, got {value!r}")

    return check


def _own_names(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(
        isinstance(name, str) and OWN_NAME.fullmatch(name) for name in value
    ):
        return tuple(value)
    raise ValueError(f"[] or names such as [my_package.module:name] are wanted, got {value!r}")


OwnNames = Annotated[tuple[str, ...], PlainValidator(_own_names), PlainSerializer(list)]


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is wanted")
    return value


PatchSize = Annotated[Size, PlainValidator(parse_size), PlainSerializer(format_size)]
PatchSizeOrSweep = Annotated[
    Size | str, PlainValidator(_size_or_sweep), PlainSerializer(_size_text)
]
RateOrSweep = Annotated[float | str, PlainValidator(_rate_or_sweep)]
Number = Annotated[float, BeforeValidator(_finite)]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Vox3 = Annotated[
    tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]],
    Field(strict=False),
]


def _standardize(value: object) -> object:
    return "foreground" if value == "brain" else value  # its name in older files


Standardize = Annotated[Literal["foreground", "slice", "none"], BeforeValidator(_standardize)]


def _spacing(value: object) -> str | tuple[float, float, float]:
    if value in ("native", "median"):
        return str(value)
    if (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
        and all(0.05 <= x <= 50 for x in value)
    ):
        i, j, k = (float(x) for x in value)
        return i, j, k
    raise ValueError(f"native, median or three lengths in mm, such as [1, 1, 3], got {value!r}")


SpacingRule = Annotated[
    str | tuple[float, float, float],
    PlainValidator(_spacing),
    PlainSerializer(lambda of: of if isinstance(of, str) else list(of)),
]
