"""A Ray head of a test's own that takes jobs of who has the token, as on a cluster."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.support.services import Service, free_port


class RayHead(Service):
    """One machine of a cluster; its jobs see nothing of what starts it but PATH."""

    def __init__(self, folder: Path, cpus: int = 2, **env: str) -> None:
        super().__init__(folder / "ray.log")
        self._port, self._cpus = free_port(), cpus
        self.home = folder / "home"
        self.home.mkdir()
        names = ("PATH", "LANG", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
        known = {name: os.environ[name] for name in names if name in os.environ}
        self._env = known | {"HOME": str(self.home),
                             "RAY_USAGE_STATS_ENABLED": "0"} | env  # fmt: skip
        # its sockets' paths must be short
        self._temp = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)

    @property
    def address(self) -> str:
        """Of its jobs."""
        return f"http://127.0.0.1:{self._port}"

    def options(self) -> dict[str, object]:
        """Nothing of this process."""
        return {"env": self._env, "cwd": self.home}

    def command(self) -> list[str]:
        """All ports are free ones: other clusters may run here."""
        ports = ("port", "ray-client-server-port", "dashboard-agent-listen-port",
                 "dashboard-agent-grpc-port", "metrics-export-port")  # fmt: skip
        return [
            "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--num-cpus={self._cpus}", f"--temp-dir={self._temp.name}", "--disable-usage-stats",
            "--object-store-memory=100000000", f"--dashboard-port={self._port}",
            *(f"--{name}={free_port()}" for name in ports),
        ]  # fmt: skip

    def is_ready(self) -> bool:
        """Whether it takes jobs."""
        return self.is_running() and b"Ray runtime started" in self._log.read_bytes()

    def remove(self) -> None:
        """End it."""
        self.kill()
        self._temp.cleanup()

    @contextmanager
    def running(self) -> Iterator[Self]:
        """From when it answers to the block's end."""
        self.start()
        try:
            self.wait()
            yield self
        finally:
            self.remove()
