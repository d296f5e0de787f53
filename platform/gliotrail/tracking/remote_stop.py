"""Stop a run wherever it is running: through its folder here, or through MLflow."""

import json

from gliotrail.errors import TrackingError
from gliotrail.runs.owner import Owner
from gliotrail.runs.stop import ask_here
from gliotrail.tracking.client import OWNER_TAG, client, one_line
from gliotrail.tracking.delivery import STOP_TAG
from gliotrail.tracking.trace import resolve


def ask_by_name(name: str) -> str:
    """Ask a run to stop, whether its process is here or on another machine.

    Args:
        name: the run's folder, its own id or MLflow's.

    Returns:
        the process that works on it.

    Raises:
        TrackingError: there is no such run, or no process works on it.
    """
    by = "`gliotrail runs stop`"
    return ask_here(name, by) or _ask_there(name, by)


def _ask_there(name: str, by: str) -> str:
    """Ask a run to stop through MLflow alone: its process sees it at its next heartbeat.

    Returns:
        the process that works on it.

    Raises:
        TrackingError: there is no such run, it has ended, or MLflow can't be reached.
    """
    with one_line():
        server = client()
        run = resolve(server, name)[1]
        owner = run.data.tags.get(OWNER_TAG)
        if run.info.status != "RUNNING" or owner is None:
            raise TrackingError(name, wanted="a run that goes on", got=run.info.status)
        server.set_tag(run.info.run_id, STOP_TAG, by)
        return str(Owner(**json.loads(owner)))
