"""The disk budget of a checkout's runs."""

import os
import time
from pathlib import Path
from typing import Final

from gliotrail.errors import ParamsError

BUDGET: Final = "GLIOTRAIL_DISK_GB"
_DEFAULT_GB: Final = 20.0
_AT_ONCE_S: Final = 0.05
_MEASURED: Final[dict[Path, tuple[int, float, float]]] = {}


def budget_bytes() -> int:
    """GLIOTRAIL_DISK_GB (by default 20) in bytes.

    Raises:
        ParamsError: it is no number above 0.
    """
    return gigabytes(BUDGET, _DEFAULT_GB)


def gigabytes(name: str, default: float) -> int:
    """The gigabytes of an environment variable, in bytes.

    Raises:
        ParamsError: it is no number above 0.
    """
    text = os.environ.get(name) or str(default)
    try:
        n_bytes = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        n_bytes = 0
    if n_bytes <= 0:
        raise ParamsError(name, wanted="a number above 0", got=repr(text))
    return n_bytes


def bytes_of(folder: Path) -> int:
    """The total size of a folder's files; files that vanish meanwhile don't count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{parent}/{name}").st_size  # a Path of each takes thrice as long
            except FileNotFoundError:
                continue
    return total


def bytes_of_lately(folder: Path) -> int:
    """Like `bytes_of`, but a result that took t seconds is used again for 100 t seconds.

    A thousand runs take a second to measure.
    """
    n_bytes, took_s, at_s = _MEASURED.get(folder, (0, 0.0, 0.0))
    started_s = time.monotonic()
    if took_s < _AT_ONCE_S or started_s - at_s > 100 * took_s:
        n_bytes = bytes_of(folder)
        now_s = time.monotonic()
        _MEASURED[folder] = n_bytes, now_s - started_s, now_s
    return n_bytes
