"""Close runs as KILLED if their process is gone, never while it lives.

A run with a folder here is closed in its folder, which is the truth, and then in MLflow. A run of
another checkout is closed in MLflow alone; if its process comes back all the same, it opens the run
again with its next heartbeat.
"""

import json
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag

from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import all_runs
from gliotrail.runs.owner import (
    Owner,
    Watch,
    beat_of,
    close_if,
    interval_of,
    is_alive,
    owner_of,
    this_process,
)
from gliotrail.tracking.client import OWNER_TAG, STATUS_TAG, client, every_run
from gliotrail.tracking.delivery import HEARTBEAT_TAG, REAPED_TAG, deliver
from gliotrail.tracking.once import close_if_twin

GONE: Final = "its process is gone"
_ENDS: Final = ("FINISHED", "FAILED", "KILLED")


def close_here(watch: Watch) -> tuple[list[RunFolder], float]:
    """Close the runs of this checkout's folders whose processes are gone.

    Returns:
        the runs closed now, and the longest interval of heartbeats that must still be watched.
    """
    closed, longest_s = [], 0.0
    for run in all_runs():
        owner = owner_of(run)
        if run.ended() is not None or owner is None:
            continue
        alive, name = is_alive(owner), str(run.root)
        if alive is None:
            alive = not watch.is_still(name, beat_of(run))
            if alive and not watch.has_moved(name):
                longest_s = max(longest_s, interval_of(beat_of(run)))
        if not alive and close_if(run, owner, GONE):
            closed.append(run)
    return closed, longest_s


def close_there(
    server: MlflowClient, watch: Watch, here: Collection[str]
) -> tuple[list[str], float]:
    """Close runs without a folder here, in MLflow. All runs of a process are closed together.

    Args:
        here: the own ids of runs with a folder here.

    Returns:
        MLflow's ids of the runs closed now, and the longest interval that must still be watched.
    """
    closed, longest_s = [], 0.0
    by_owner: defaultdict[str, list[Run]] = defaultdict(list)
    for run, own_id in every_run(server, "attributes.status = 'RUNNING'"):
        if OWNER_TAG not in run.data.tags:
            closed += [run.info.run_id] if close_if_twin(server, run, own_id) else []
        elif own_id not in here:
            by_owner[run.data.tags[OWNER_TAG]].append(run)
    for text, runs in by_owner.items():
        try:
            owner = Owner(**json.loads(text))
        except (ValueError, TypeError):
            continue  # perhaps written by a later version
        alive = is_alive(owner)
        if alive is None:
            beats = " ".join(sorted(run.data.tags.get(HEARTBEAT_TAG, "") for run in runs))
            alive = not watch.is_still(text, beats)
            if alive and not watch.has_moved(text):
                longest_s = max(longest_s, interval_of(beats))
        if not alive:
            closed += [run.info.run_id for run in runs if _close(server, run, owner)]
    return closed, longest_s


def _close(server: MlflowClient, run: Run, owner: Owner) -> bool:
    """Set a run to KILLED, unless it shows signs of life or ends at this very moment."""
    run_id, beat = run.info.run_id, run.data.tags.get(HEARTBEAT_TAG)
    now = server.get_run(run_id)
    if now.info.status != "RUNNING" or now.data.tags.get(HEARTBEAT_TAG) != beat:
        return False
    server.log_batch(run_id, tags=[RunTag(REAPED_TAG, f"{GONE}: {owner}")])
    server.set_terminated(run_id, "KILLED")
    # its process records its end before it sets the status: if it did so meanwhile, that counts
    says = server.get_run(run_id).data.tags.get(STATUS_TAG)
    if says in _ENDS:
        server.set_terminated(run_id, says)
        server.delete_tag(run_id, REAPED_TAG)
        return False
    return True


def was_closed(server: MlflowClient, holder: Owner | None = None) -> bool:
    """Whether a reaper closed a run of the holder, by default this process."""
    mine = json.dumps(asdict(holder or this_process()))
    return any(
        run.data.tags.get(OWNER_TAG) == mine
        for run, _ in every_run(server, f"tags.`{REAPED_TAG}` LIKE '%'")
    )


def own_ids() -> set[str]:
    """Our own ids of the runs with a folder here."""
    return {run.describe()["id"] for run in all_runs()}


def reap(watch: Watch) -> tuple[list[str], float]:
    """Look once at all runs, here and in MLflow; closed runs of this checkout are delivered, too.

    Returns:
        the names of those closed, and the longest interval of heartbeats that must still be
        watched: look again for three of it.

    Raises:
        MlflowException: the server can't be reached; that time doesn't count.
    """
    closed, here_s = close_here(watch)
    server = client()
    try:
        for run in closed:
            deliver(run, server)
        there, there_s = close_there(server, watch, own_ids())
    except Exception:
        watch.forget()
        raise
    return [run.root.name for run in closed] + there, max(here_s, there_s)


def reap_all(look_every_s: float = 0.0) -> list[str]:
    """Look until every run is known to live or is closed: at once for this machine's processes.

    Raises:
        MlflowException: the server can't be reached.
    """
    watch = Watch()
    closed, interval_s = reap(watch)
    while interval_s:
        time.sleep(look_every_s or interval_s / 2)
        more, interval_s = reap(watch)
        closed += more
    return closed
