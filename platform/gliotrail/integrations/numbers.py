"""What of a trainer's report is a number."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of nested metrics, by names such as `val/loss`; texts and the like are none."""
    found = dict[str, float]()
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": number for name, number in numbers_of(value).items()}
        elif not isinstance(value, str | bytes):
            with suppress(TypeError, ValueError, RuntimeError):
                found[str(key)] = float(value)
    return found
