"""What the measurements of `compared` have in common: the loop's start, its database, patience."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.support.projects import ROOT
from tests.support.services import free_port
from tests.tracking import compared_loop
from tests.tracking.compared_files import Kept, in_mlflow, in_wandb

STEPS, STEP_S, LOOKED_AT_S, SETTLED_S, AWAY_S = 60, 0.1, 10.0, 120.0, 2.0
EXPERIMENT = "compared"
FORKED = get_context("forkserver")
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
    "RAY_AUTH_MODE": "disabled",
    "RAY_AUTH_TOKEN": "",
}


class Loop:
    """Starts of a loop in a folder of its own."""

    def __init__(self, way: str, folder: Path, uri: str, experiment: str = EXPERIMENT) -> None:
        self.way, self.folder = way, folder
        self.env = SETTINGS | {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_EXPERIMENT_NAME": experiment,
            "GLIOTRAIL_STATE": str(folder / "state"),
        }
        self.failed = 0

    def start(self, step_s: float = STEP_S, steps: int = STEPS) -> Any:
        """Its process."""
        (self.folder / "began").unlink(missing_ok=True)
        words = (self.way, self.folder, self.env, steps, step_s)
        process = FORKED.Process(target=compared_loop.main, args=words)
        process.start()
        return process

    def until_began(self, process: Any) -> None:
        """Until it is at its steps, or at its end."""
        while process.is_alive() and not (self.folder / "began").exists():
            time.sleep(0.01)

    def to_its_end(self, process: Any = None) -> None:
        """Started again until it comes there."""
        for _ in range(5):
            process = process or self.start()
            process.join(900)
            if process.exitcode == 0:
                return
            self.failed, process = self.failed + 1, None

    def sync(self) -> None:
        """As the user is told to do where not all was delivered."""
        words = ["gliotrail", "runs", "sync"]
        subprocess.run(words, cwd=self.folder, env=os.environ | self.env, check=True)

    def took(self) -> dict[str, Any]:
        """Of the last start."""
        return dict(json.loads((self.folder / "took.json").read_text()))


def store(folder: Path) -> str:
    """An empty database, made before anything is killed."""
    (folder / "mlflow.db").write_bytes(empty())
    return f"sqlite:///{folder}/mlflow.db"


@cache
def empty() -> bytes:
    """A database of MLflow's without runs."""
    with tempfile.TemporaryDirectory() as folder:
        make = "import mlflow; mlflow.MlflowClient().search_experiments()"
        env = os.environ | SETTINGS | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        subprocess.run([sys.executable, "-c", make], cwd=folder, env=env, check=True)
        return (Path(folder) / "mlflow.db").read_bytes()


def kept(way: str, folder: Path, uri: str, experiment: str = EXPERIMENT) -> Kept:
    """What there is of a loop."""
    if way == "W&B offline":
        return in_wandb(folder, STEPS)
    return in_mlflow(uri, experiment, STEPS)


def until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came to be so."""
    ends = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > ends:
            return False
        time.sleep(0.25)
    return True


def settled(way: str, folder: Path, uri: str, experiment: str = EXPERIMENT) -> Kept:
    """What there is once what is late has come, too."""
    if way != "W&B offline":
        until(lambda: kept(way, folder, uri, experiment).statuses == ["FINISHED"], SETTLED_S)
    return kept(way, folder, uri, experiment)


class ForkedServer:
    """MLflow's server in a process that is forked after its imports: it starts in a second."""

    def __init__(self, folder: Path) -> None:
        self.database, self._folder, self._port = store(folder), folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: Any = None

    def start(self) -> None:
        """Until it answers."""
        words = (self.database, self._folder, self._port)
        self._process = FORKED.Process(target=_serve, args=words)
        self._process.start()
        assert until(self._answers, 240), (self._folder / "server.log").read_text()[-2000:]

    def _answers(self) -> bool:
        ask = f"{self.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
        with suppress(OSError), urllib.request.urlopen(ask, timeout=20):
            return True
        return False

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def kill_for(self, away_s: float) -> None:
        """Killed, and started again so much later."""
        self.kill()
        time.sleep(away_s)
        self.start()


def _serve(database: str, folder: Path, port: int) -> None:
    """As `mlflow server` calls uvicorn."""
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    import uvicorn

    uvicorn.run("mlflow.server.fastapi_app:app", host="127.0.0.1", port=port)


@contextmanager
def a_server() -> Iterator[ForkedServer]:
    """For several ways."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        server = ForkedServer(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.kill()
