"""Which voxels of a scan are the body, and which the air around it.

Air is the value that fills the scan's border: 0 where the skull was stripped, -1024 or so in CT,
some negative number where somebody standardised the whole volume. Scans in memory have that value
subtracted, so that air is exactly 0 everywhere in Gliotrail.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_FILLS: Final = 0.5
"""Share of the border's voxels that must have the same value for it to be air."""


def air_value(image_IJK: npt.NDArray[Any]) -> float:
    """The value of one channel's air: 0 or its lowest, whichever at least half of its border has.

    0 where neither has as much of the border; if no voxel is 0 then, every voxel is the body.
    """
    border = np.concatenate(
        [image_IJK.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    )
    corner = border[0]
    for candidate in (0, corner, border.min()):
        fills = np.count_nonzero(border == candidate) >= _FILLS * border.size
        if fills and (candidate == 0 or candidate == image_IJK.min()):
            return float(candidate)
    return 0.0


def air_values(channels: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """`air_value` of each channel (C,)."""
    return np.array([air_value(channel) for channel in channels], np.float64)
