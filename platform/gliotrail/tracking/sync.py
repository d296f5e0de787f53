"""Deliver every run of this checkout that the tracking server doesn't wholly know."""

from gliotrail.places import state_dir
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.journal import RunFolder
from gliotrail.tracking.runs import client


def sync_all() -> tuple[int, dict[str, str]]:
    """Deliver what is left, sweeps before their trials.

    Returns:
        how many runs the server knows now, and why others could not be delivered, by folder.
    """
    folders = sorted(path.parent for path in (state_dir() / "runs").glob("*/run.json"))
    runs = [RunFolder(folder) for folder in folders]
    runs.sort(key=lambda run: run.describe().get("parent") is not None)
    known, problems = 0, {}
    for run in runs:
        try:
            deliver(run, client())
            known += 1
        except Exception as error:  # noqa: BLE001 - whatever one run's server says, the others go on
            problems[run.root.name] = f"{type(error).__name__}: {error}".split("\n")[0]
    return known, problems
