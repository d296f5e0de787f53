"""How alike the numbers of two runs are: the same bits, or how far apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Likeness:
    """Of numbers by name.

    n, n_equal: names that either has; those whose numbers are the same, bit for bit.
    largest: absolute difference; infinite where one lacks a name, or can't be compared.
    where: the name that it is at; empty where all are equal.
    """

    n: int
    n_equal: int
    largest: float = 0.0
    where: str = ""

    @property
    def is_identical(self) -> bool:
        """Whether every number is the same."""
        return self.n == self.n_equal


def liken(one: Mapping[str, Any], other: Mapping[str, Any]) -> Likeness:
    """Compare arrays or single numbers by name."""
    names = sorted(one.keys() | other.keys())
    differ = {n: d for n in names if (d := _difference(one.get(n), other.get(n))) is not None}
    where = max(differ, key=lambda name: differ[name], default="")
    return Likeness(len(names), len(names) - len(differ), differ.get(where, 0.0), where)


def _difference(one: Any, other: Any) -> float | None:
    """None where all bits are the same."""
    if one is None or other is None:
        return math.inf
    first, second = np.asarray(one), np.asarray(other)
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return math.inf
    if first.tobytes() == second.tobytes():
        return None
    with np.errstate(invalid="ignore"):
        largest = np.abs(first.astype(np.float64) - second).max()
    return math.inf if np.isnan(largest) else float(largest)
