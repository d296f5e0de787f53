"""MLflow's pages as `gliotrail ui` serves them: a page that is open asks for new points sooner.

The interval is a constant of MLflow's script, which nothing sets, so its timers are shortened.
"""

from pathlib import Path
from typing import Final

from flask import request

ASKS_EVERY_MS: Final = 5_000
"""In place of MLflow's 30,000."""
_SCRIPT: Final = f"""<script>
for (const name of ["setTimeout", "setInterval"]) {{
  const own = window[name];
  window[name] = (work, ms, ...more) => own(work, ms === 30000 ? {ASKS_EVERY_MS} : ms, ...more);
}}
</script>"""


def make_app() -> object:
    """MLflow's server; `mlflow server --app-name gliotrail` finds it."""
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app as server

    text = (Path(str(pages.static_folder)) / "index.html").read_text(encoding="utf-8")
    page = text.replace("<head>", f"<head>{_SCRIPT}", 1)
    pages.before_request(lambda: page if (request.method, request.path) == ("GET", "/") else None)
    return server
