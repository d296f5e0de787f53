"""The prepared cases that commands are given by name."""

from pathlib import Path
from typing import Final

from gliotrail.errors import DataError
from gliotrail.imaging.prepared import PreparedCase, load_prepared

PREPARED: Final = Path("data/prepare")


def case_named(name: str, or_else: str = "") -> PreparedCase:
    """A prepared case.

    Args:
        or_else: what else the command would have taken.

    Raises:
        DataError: there is no such case; some that are there are named.
    """
    cases = load_prepared(PREPARED).cases
    if name not in cases:
        known = ", ".join(sorted(cases)[:5]) + (", .." if len(cases) > 5 else "")
        wanted = f"one of {known}{or_else}"
        raise DataError("case", where=PREPARED, wanted=wanted, got=repr(name))
    return cases[name]
