"""A scan's values as they are stored: where the body is, the smallest type, the statistics."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gliotrail.errors import DataError


def body_of(
    channels: Iterable[npt.NDArray[Any]], air_C: npt.NDArray[np.float64], where: object
) -> npt.NDArray[np.bool_]:
    """Where any channel is not air (I, J, K).

    Raises:
        DataError: no voxel is, or air is no number.
    """
    if not np.isfinite(air_C).all():
        got = f"{air_C[~np.isfinite(air_C)][0]:g}"
        raise DataError("voxel values", where=where, wanted="within float32", got=got)
    body = np.logical_or.reduce([c != air for c, air in zip(channels, air_C, strict=True)])
    if not body.any():
        got = "zeros alone" if not air_C.any() else "one value alone"
        raise DataError("voxel values", where=where, wanted="a body", got=got)
    return np.asarray(body)


def small_type(
    ras_IJKC: npt.NDArray[Any],
    channel_order: Sequence[int],
    where: object,
    air_C: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[Any]:
    """A copy, channels in another order, i fastest; int16 where that loses nothing, else float32.

    `air_C`, of the channels in their new order, is subtracted.

    Raises:
        DataError: a value beyond float32, NaN or Inf.
    """
    if air_C is not None and air_C.any():
        shift_C = np.empty_like(air_C)
        shift_C[list(channel_order)] = air_C
        ras_IJKC = ras_IJKC - shift_C
    low, high = ras_IJKC.min(), ras_IJKC.max()
    if not max(-float(low), float(high)) <= float(np.finfo(np.float32).max):  # so NaN is too
        raise DataError("voxel values", where=where, wanted="within float32", got=f"{high:g}")
    limits = np.iinfo(np.int16)
    whole = (
        limits.min <= low
        and high <= limits.max
        and (
            ras_IJKC.dtype.kind in "iu"
            or all(
                np.array_equal(channel, np.rint(channel)) for channel in np.moveaxis(ras_IJKC, 3, 0)
            )
        )
    )
    small = np.empty(ras_IJKC.shape, np.int16 if whole else np.float32, order="F")
    for channel, in_file in enumerate(channel_order):
        small[..., channel] = ras_IJKC[..., in_file]
    return small


def foreground_statistics(image_IJKC: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Mean and population std of each channel over the foreground, whole and per axial slice.

    The foreground is where any channel is not 0. Keys are fields of `PreparedCase`.
    """
    foreground_IJK = (image_IJKC != 0).any(axis=3)
    channels = np.moveaxis(image_IJKC, 3, 0)
    whole_C2 = np.array([_mean_std(channel[foreground_IJK]) for channel in channels])
    slices_CK2 = np.array(
        [
            [
                _mean_std(channel[..., k][foreground_IJK[..., k]])
                for k in range(foreground_IJK.shape[2])
            ]
            for channel in channels
        ]
    )
    return {
        "mean_C": whole_C2[:, 0],
        "std_C": whole_C2[:, 1],
        "slice_mean_CK": slices_CK2[..., 0],
        "slice_std_CK": slices_CK2[..., 1],
    }


def _mean_std(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean and population std; exact for whole numbers, so the same on every machine."""
    if not values.size:
        return 0.0, 0.0
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)
        return float(wide.mean()), float(wide.std())
    n, total = values.size, int(values.sum(dtype=np.int64))
    squares = int(np.square(values, dtype=np.int64).sum())
    return total / n, math.sqrt(n * squares - total * total) / n
