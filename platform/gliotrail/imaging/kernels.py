"""Kernels that do in one pass what numpy does in many, compiled by Numba at first use.

Each user of a kernel also has a numpy version, which gives the same numbers to the last bit, for
use without Numba. Arrays are laid out as on disk, i fastest: (C, K, J, I).
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gliotrail.imaging.geometry import Vox3

Ints = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]

_TILE: Final = 16  # values of a cache line


def fitting(
    kernel: Callable[..., None], image_CIJK: npt.NDArray[Any], dtype: npt.DTypeLike
) -> Callable[..., None] | None:
    """A kernel below as machine code; None for another kind of array, or without Numba.

    The first call in a process takes about a second, most of it Numba's import.
    """
    fits = image_CIJK.dtype == dtype and image_CIJK.transpose(0, 3, 2, 1).flags.c_contiguous
    return compiled(kernel) if fits else None


@cache
def compiled(kernel: Callable[..., None]) -> Callable[..., None] | None:
    """A kernel as machine code that releases the GIL, cached on disk; None without Numba."""
    try:
        import numba

        jit: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
        return jit(kernel)  # type: ignore[no-any-return]
    except (ImportError, RuntimeError):  # the latter: no folder for the compiled code
        return None


def standardize(
    image: Ints, start: Vox3, size: Vox3, mean_CK: Floats, std_CK: Floats, out: Floats, at: Vox3
) -> None:
    """(v - mean) / std of a box, 0 where all channels are 0.

    Args:
        image: whole, (C, K, J, I).
        start: of the box in it, along i, j, k, as `size` and `at`.
        size: of the box.
        mean_CK: of each channel and each k of the box, as `std_CK`.
        std_CK: infinite where the result is to be 0.
        out: receives the result, (C, K, J, I).
        at: the box' start in `out`.
    """
    n, some = size[0], np.empty(size[0], np.int16)
    for k in range(size[2]):
        for j in range(size[1]):
            some[:] = 0
            for c in range(image.shape[0]):
                row = image[c, start[2] + k, start[1] + j, start[0] : start[0] + n]
                for i in range(n):
                    some[i] |= row[i]
            for c in range(image.shape[0]):
                mean, std = mean_CK[c, k], std_CK[c, k]
                row = image[c, start[2] + k, start[1] + j, start[0] : start[0] + n]
                to = out[c, at[2] + k, at[1] + j, at[0] : at[0] + n]
                for i in range(n):
                    value = (np.float32(row[i]) - mean) / std
                    to[i] = value if some[i] != 0 else np.float32(0)


def standardize_slices(image: Ints, start: Vox3, size: Vox3, out: Floats, at: Vox3) -> None:
    """(v - mean) / std of each channel's slice k of `out`, a box of which lies in the image.

    The rest of `out` counts as 0. A slice of one value becomes 0. Arguments as for `standardize`.
    """
    n, n_slice = size[0], out.shape[2] * out.shape[3]
    for c in range(image.shape[0]):
        for k in range(size[2]):
            total = squares = 0
            for j in range(size[1]):
                row = image[c, start[2] + k, start[1] + j, start[0] : start[0] + n]
                for i in range(n):
                    value = int(row[i])
                    total += value
                    squares += value * value
            wide_mean = total / n_slice
            variance = squares / n_slice - wide_mean * wide_mean
            mean = np.float32(wide_mean)
            std = np.float32(math.sqrt(variance) if variance > 0 else np.inf)
            out[c, at[2] + k] = (np.float32(0) - mean) / std
            for j in range(size[1]):
                row = image[c, start[2] + k, start[1] + j, start[0] : start[0] + n]
                to = out[c, at[2] + k, at[1] + j, at[0] : at[0] + n]
                for i in range(n):
                    to[i] = (np.float32(row[i]) - mean) / std


def change(
    image: Floats,
    flip: tuple[bool, bool, bool],
    scale_C: Floats,
    shift_C: Floats,
    out_CIJK: Floats,
) -> None:
    """value * scale, + shift where not all channels are 0; mirrored; k the fastest."""
    channels, n_k, n_j, n_i = image.shape
    some = np.empty(n_i, np.float32)
    tile = np.empty((channels, _TILE, n_i), np.float32)
    for j in range(n_j):
        to_j = n_j - 1 - j if flip[1] else j
        for start in range(0, n_k, _TILE):
            n = min(_TILE, n_k - start)
            for k in range(n):
                some[:] = 0
                for c in range(channels):
                    row = image[c, start + k, j]
                    for i in range(n_i):
                        some[i] = np.float32(1) if row[i] != 0 else some[i]
                for c in range(channels):
                    scale, shift = scale_C[c], shift_C[c]
                    row, to = image[c, start + k, j], tile[c, k]
                    for i in range(n_i):
                        to[i] = row[i] * scale + shift * some[i]
            for c in range(channels):
                for i in range(n_i):
                    line = out_CIJK[c, n_i - 1 - i if flip[0] else i, to_j]
                    for k in range(n):
                        line[n_k - 1 - start - k if flip[2] else start + k] = tile[c, k, i]


def warp(
    image: Floats,
    labels: Bytes,
    matrix: Doubles,
    centre_vox: Doubles,
    out: Floats,
    out_labels: Bytes,
) -> None:
    """A turned and scaled view: trilinear, 0 where the nearest voxel is 0 in all channels.

    Args:
        image: (C, K, J, I), as `out`.
        labels: (K, J, I), like `out_labels`; the nearest one is taken.
        matrix: offsets i, j, k from the middle of `out` -> offsets from `centre_vox`.
        centre_vox: i, j, k in `image`. Beyond its edge, values are those at the edge.
    """
    channels, n_k, n_j, n_i = out.shape
    near, low, high = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    part = np.empty(3, np.float32)
    for k in range(n_k):
        for j in range(n_j):
            for i in range(n_i):
                of_i, of_j, of_k = i - (n_i - 1) / 2, j - (n_j - 1) / 2, k - (n_k - 1) / 2
                for a in range(3):
                    last = image.shape[3 - a] - 1
                    there = matrix[a, 0] * of_i + matrix[a, 1] * of_j + matrix[a, 2] * of_k
                    there = min(max(there + centre_vox[a], 0.0), float(last))
                    near[a], low[a] = int(there + 0.5), int(there)
                    high[a], part[a] = min(low[a] + 1, last), np.float32(there - low[a])
                out_labels[k, j, i] = labels[near[2], near[1], near[0]]
                some = False
                for c in range(channels):
                    some = some or image[c, near[2], near[1], near[0]] != 0
                for c in range(channels):
                    if not some:
                        out[c, k, j, i] = 0
                        continue
                    # along i, then j, then k
                    below, above = image[c, low[2]], image[c, high[2]]
                    v0, v1 = below[low[1], low[0]], below[high[1], low[0]]
                    v0 += (below[low[1], high[0]] - v0) * part[0]
                    v1 += (below[high[1], high[0]] - v1) * part[0]
                    w0, w1 = above[low[1], low[0]], above[high[1], low[0]]
                    w0 += (above[low[1], high[0]] - w0) * part[0]
                    w1 += (above[high[1], high[0]] - w1) * part[0]
                    v0 += (v1 - v0) * part[1]
                    w0 += (w1 - w0) * part[1]
                    out[c, k, j, i] = v0 + (w0 - v0) * part[2]
