"""Where MLflow is. To know it takes no MLflow, which takes seconds to import."""

import os

from gliotrail.paths import state_dir


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in this checkout's `.gliotrail/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state_dir() / 'mlflow.db'}"


def shown(uri: str) -> str:
    """A tracking address without user and password."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://...@{rest.rpartition('@')[2]}" if "@" in rest else uri
