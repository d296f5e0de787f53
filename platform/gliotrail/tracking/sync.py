"""Deliver every run of this checkout that is not wholly on the tracking server."""

from collections.abc import Callable, Sequence

from mlflow import MlflowClient

from gliotrail.errors import TrackingError
from gliotrail.runs.addresses import reason
from gliotrail.runs.disk_budget import budget_bytes
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import all_runs, look_at, make_room
from gliotrail.runs.owner import Watch, owner_of
from gliotrail.tracking.client import client, one_line
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.once import twins_left
from gliotrail.tracking.reaper import close_here, reap
from gliotrail.tracking.registry import MODEL
from gliotrail.tracking.restore import outputs_here, restore


def sync_all() -> tuple[int, dict[str, str]]:
    """Deliver what is left, sweeps before their trials; then enforce the disk budget.

    Runs known only from this checkout's outputs, as after `dvc pull`, are rebuilt first.

    Returns:
        how many runs the server knows now, and why others could not be delivered, by folder.

    Raises:
        TrackingError: the server can't be reached.
    """
    with one_line():  # one error, not one a run
        server = client()
        server.search_experiments(max_results=1)
    close_here(Watch())
    known, problems = 0, {}
    for outputs in outputs_here():
        try:
            restore(outputs)
        except TrackingError as error:
            problems[str(outputs)] = str(error)
    ids: dict[str, str] = {}
    for run in all_runs():
        try:
            ids[run.describe()["id"]] = deliver(run, server, above=ids)
            known += 1
        except Exception as error:  # noqa: BLE001 - one run's failure must not stop the others
            problems[run.root.name] = reason(error)
    try:
        close_twins(server)
    except Exception as error:  # noqa: BLE001 - as above
        problems["twins"] = reason(error)
    make_room(budget_bytes())
    return known, problems


def close_twins(server: MlflowClient) -> list[str]:
    """Close the twins that late requests made; a description of each."""
    found = list(twins_left(server, MODEL))
    for _, close in found:
        close()
    return [twin for twin, _ in found]


def clean_up() -> list[RunFolder]:
    """Clean up at a start: close runs whose processes are gone, enforce the disk budget.

    Returns:
        the runs that no process holds and that are not wholly on the server.

    Raises:
        MlflowException: the server can't be reached.
    """
    reap(Watch())
    make_room(budget_bytes())
    return [run for run in all_runs() if owner_of(run) is None and not look_at(run).is_known]


def deliver_some(runs: Sequence[RunFolder], enough: Callable[[], bool]) -> list[RunFolder]:
    """Deliver runs until it is `enough`; one with a damaged folder or a failing server is skipped.

    Returns:
        the runs that are left for another time.
    """
    for n, run in enumerate(runs):
        if enough():
            return list(runs[n:])
        try:
            deliver(run, client(), enough)
        except Exception:  # noqa: BLE001, S112 - `gliotrail runs sync` reports what is wrong
            continue
        if enough():
            return list(runs[n:])  # run n may be incomplete, so it stays in the list
    return []
