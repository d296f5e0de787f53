"""Where MLflow is. To know it takes no MLflow, which takes seconds to import."""

import os
from pathlib import Path

from gliotrail.paths import state_dir


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in this checkout's `.gliotrail/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(state_dir())


def database_uri(state: Path) -> str:
    """The SQLite file of a state folder, whatever the folder's name has in it."""
    path = str(state / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def shown(uri: str) -> str:
    """A tracking address without user and password."""
    scheme, _, rest = uri.partition("://")
    server, slash, path = rest.partition("/")
    return f"{scheme}://...@{server.rpartition('@')[2]}{slash}{path}" if "@" in server else uri
