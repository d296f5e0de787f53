"""What trainings lean on, as real processes: PostgreSQL and MLflow's server, on loopback only."""

import os
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from time import monotonic, sleep

import psutil

from tests.support.needs import postgres_bin


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def kill_all(root: int) -> int:
    """SIGKILL a process and all below it; how many there were."""
    try:
        top = psutil.Process(root)
        processes = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, 10)
    return len(processes)


class Service(ABC):
    """A process that can be killed and started again; `command` says how."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """How it is started."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers."""

    def options(self) -> dict[str, object]:
        """More for Popen."""
        return {}

    def start(self) -> None:
        """Without waiting until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.options()
            )  # type: ignore[call-overload]

    def is_running(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """The process and all that it started."""
        if self.process is not None:
            kill_all(self.process.pid)
            self.process.wait()

    def wait(self, timeout_s: float = 240) -> None:
        """Until it answers; started again if it gave up."""
        ends_s = monotonic() + timeout_s
        while not self.is_ready():
            assert monotonic() < ends_s, self._log.read_text()[-2000:]
            if not self.is_running():
                self.start()
            sleep(0.5)


class Postgres(Service):
    """A PostgreSQL of its own; where this is root, it runs as the user `postgres`.

    Args:
        settings: more of its settings, such as `fsync=off`.
    """

    def __init__(self, log: Path, *settings: str) -> None:
        super().__init__(log)
        self._settings = [word for setting in settings for word in ("-c", setting)]
        bin_folder = postgres_bin()
        assert bin_folder is not None
        self._bin, self.port = bin_folder, free_port()
        # pytest's own folders are not for other users
        self.folder = Path(tempfile.mkdtemp(prefix="gliotrail-postgres-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self._run("initdb", "-D", f"{self.folder}/data", "-U", "mlflow", "-A", "trust")
        self.start()
        self.wait()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", "mlflow")

    @property
    def uri(self) -> str:
        """For MLflow."""
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/mlflow"

    def _run(self, name: str, *words: str) -> None:
        command = [str(self._bin / name), *words]
        subprocess.run(command, check=True, capture_output=True, **self.options())  # type: ignore[call-overload]

    def options(self) -> dict[str, object]:
        """Not as root, which PostgreSQL refuses."""
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        return {"cwd": self.folder} | (user if os.geteuid() == 0 else {})

    def command(self) -> list[str]:
        """The server itself, without pg_ctl between."""
        folder = str(self.folder)
        return [
            str(self._bin / "postgres"), "-D", f"{folder}/data", "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}",
            *self._settings,
        ]  # fmt: skip

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        ask = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return self.is_running() and not subprocess.run(ask, check=False).returncode

    def remove(self) -> None:
        """End it, and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class MlflowServer(Service):
    """MLflow's tracking server, which keeps artifacts in a folder."""

    def __init__(self, log: Path, store: str, artifacts: Path) -> None:
        super().__init__(log)
        self._store, self._artifacts, self._port = store, artifacts, free_port()

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def options(self) -> dict[str, object]:
        """Without its helpers for long-running jobs, which nothing here uses."""
        return {"env": os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}}

    def command(self) -> list[str]:
        """One worker: its others would only wait."""
        return [
            "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1",
            "--backend-store-uri", self._store, "--artifacts-destination", str(self._artifacts),
        ]  # fmt: skip

    def is_ready(self) -> bool:
        """Whether it answers, its database too."""
        ask = f"{self.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
        try:
            with urllib.request.urlopen(ask, timeout=20):
                return True
        except (urllib.error.URLError, OSError):
            return False


class Pages(MlflowServer):
    """`gliotrail ui` on this environment's tracking."""

    def __init__(self, log: Path) -> None:
        super().__init__(log, "", log.parent)

    def command(self) -> list[str]:
        """Without a browser of its own."""
        return ["gliotrail", "ui", "--no-open", "--port", str(self._port)]
