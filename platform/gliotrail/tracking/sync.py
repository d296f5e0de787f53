"""Deliver every run of this checkout that the tracking server doesn't wholly know."""

from gliotrail.tracking.budget import budget_bytes
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.runs import client
from gliotrail.tracking.spool import all_runs, make_room


def sync_all() -> tuple[int, dict[str, str]]:
    """Deliver what is left, sweeps before their trials; then keep to the disk's budget.

    Returns:
        how many runs the server knows now, and why others could not be delivered, by folder.
    """
    known, problems = 0, {}
    for run in all_runs():
        try:
            deliver(run, client())
            known += 1
        except Exception as error:  # noqa: BLE001 - whatever one run's server says, the others go on
            problems[run.root.name] = f"{type(error).__name__}: {error}".split("\n")[0]
    make_room(budget_bytes())
    return known, problems
