"""Channels without information: empty, constant, or the same as another."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from gliotrail.errors import DataError
from gliotrail.imaging.foreground import air_value


def check_informative(
    image_IJKC: npt.NDArray[Any], names: Sequence[str], where: object, do: str | None = None
) -> None:
    """Refuse a scan with a channel that holds no information.

    Raises:
        DataError: a channel has one value everywhere, or one in all of the body, or is the same
            as another; all of them are named.
    """
    channels = dict(zip(names, np.moveaxis(image_IJKC, 3, 0), strict=True))
    faults, empty = [], set()
    for name, image_IJK in channels.items():
        low, high = image_IJK.min(), image_IJK.max()
        if low == high:
            faults.append(f"{name} is {low:g} everywhere")
            empty.add(name)
            continue
        body = image_IJK[image_IJK != air_value(image_IJK)]
        if body.min() == body.max():
            faults.append(f"{name} is {body[0]:g} all over the body")
            empty.add(name)
    for one, other in combinations([name for name in names if name not in empty], 2):
        if np.array_equal(channels[one], channels[other]):
            faults.append(f"{one} and {other} are the same")
    if faults:
        wanted = f"{len(names)} different images"
        raise DataError("channels", where=where, wanted=wanted, got="; ".join(faults), do=do)
