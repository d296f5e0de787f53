"""The numbers in a trainer's report."""

from collections.abc import Iterable, Mapping
from typing import Any

from gliotrail.errors import TrackingError


def numbers_of(metrics: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, float]:
    """The numbers of nested metrics, by names such as `val/loss`, without texts and the like.

    Args:
        without: names at the top level to leave out.
    """
    left_out, found = set(without), dict[str, float]()
    for key, value in metrics.items():
        if key in left_out or isinstance(value, str | bytes):
            continue
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": number for name, number in numbers_of(value).items()}
            continue
        try:
            found[str(key)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            continue
    return found


def step_of(metrics: Mapping[str, Any], key: str) -> int:
    """The step that a report says it is of.

    Raises:
        TrackingError: it doesn't.
    """
    value = metrics.get(key)
    try:
        if value is not None and int(value) == value:
            return int(value)
    except (TypeError, ValueError):
        pass
    do = "report the loop's own count under that name: Ray's begins anew after a failure"
    got = f"{', '.join(map(str, metrics))}" if value is None else repr(value)
    raise TrackingError("report", wanted=f"a whole number {key!r}", got=got, do=do)
