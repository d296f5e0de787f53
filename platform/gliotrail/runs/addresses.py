"""MLflow's address, without importing MLflow, which takes seconds."""

import os
import re
from pathlib import Path
from typing import Final

from gliotrail.errors import ParamsError
from gliotrail.paths import state_dir

_SCHEMES: Final = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_UNREACHED: Final = re.compile(r"API request to \S+ failed with (?:timeout )?exception (.*)")
_ERRNO: Final = re.compile(r"\[Errno -?\d+\] ([\w ]+)")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in this checkout's `.gliotrail/`.

    Raises:
        ParamsError: neither a server's nor a database's address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.partition(":")[0].partition("+")[0] not in _SCHEMES:
        wanted = "http://, https:// or a database's address"
        raise ParamsError("MLFLOW_TRACKING_URI", wanted=wanted, got=repr(shown(uri)))
    return uri or database_uri(state_dir())


def database_uri(state: Path) -> str:
    """The address of a state folder's SQLite file, any special characters escaped."""
    path = str(state / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def shown(uri: str) -> str:
    """A tracking address without user and password."""
    scheme, _, rest = uri.partition("://")
    server, slash, path = rest.partition("/")
    return f"{scheme}://...@{server.rpartition('@')[2]}{slash}{path}" if "@" in server else uri


def reason(error: Exception) -> str:
    """MLflow's error in one line; for an unreachable server, the cause."""
    text = f"{type(error).__name__}: {error}".split("\n")[0]
    unreached = _UNREACHED.search(text)
    if unreached is None:
        return text
    cause = _ERRNO.search(unreached[1])
    return f"no answer: {cause[1].lower() if cause else unreached[1]}"
