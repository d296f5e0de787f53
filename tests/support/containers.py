"""infra/compose's services as containers of podman, in a project of their own."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.projects import ROOT

IMAGES = ROOT / "tests/infra/images"


def podman_env(folder: Path) -> dict[str, str]:
    """The environment of podman's commands, as the images were built."""
    show = f'. {IMAGES}/settings.sh {folder}; echo "$CONTAINERS_CONF"'
    done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    return {**os.environ, "CONTAINERS_CONF": done.stdout.strip()}


@dataclass(frozen=True)
class Compose:
    """Commands of podman-compose in a copy of infra/compose.

    It knows no conditions of health (podman 4.3 can't wait for them), so each service is started
    by itself and asked for its health by hand.
    """

    folder: Path
    env: dict[str, str]
    project: str

    @property
    def command(self) -> str:
        """As COMPOSE of backup.sh."""
        program = Path(sys.executable).with_name("podman-compose")
        return f"{program} -p {self.project} --profile tls"

    def __call__(self, *words: str, check: bool = True) -> str:
        """Run `compose WORDS`."""
        return self.run("bash", "-c", f'{self.command} "$@"', "bash", *words, check=check)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the folder; what it prints on stdout."""
        env = self.env | {"COMPOSE": self.command}
        done = subprocess.run(
            command, cwd=self.folder, env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"[-3000:]
        return done.stdout

    def container(self, service: str, number: int = 1) -> str:
        """A container's name."""
        return f"{self.project}_{service}_{number}"

    def start(self, *services: str, workers: int = 2) -> None:
        """Start services, and wait for the health of those that have a check."""
        self("up", "-d", "--no-build", "--no-deps", "--scale", f"worker={workers}", *services)
        for service in services:
            if service in {"postgres", "s3", "mlflow", "ray"}:
                self.wait_healthy(service)

    def wait_healthy(self, service: str, patience_s: float = 300) -> None:
        """Ask for a container's health until it is well."""
        ends_s = time.monotonic() + patience_s
        ask = ["podman", "healthcheck", "run", self.container(service)]
        while subprocess.run(ask, env=self.env, capture_output=True, check=False).returncode:
            assert time.monotonic() < ends_s, self.logs(service)[-3000:]
            time.sleep(1)

    def once(self, service: str, *command: str) -> str:
        """Run a service that ends."""
        return self("run", "--rm", "--no-deps", "-T", service, *command)

    def logs(self, service: str) -> str:
        """What a container wrote."""
        return self.run("podman", "logs", self.container(service), check=False)

    def up(self) -> None:
        """All, in compose.yaml's order."""
        self.start("postgres", "s3", "s3-door")
        self.once("buckets")
        self.once("schema")
        self.start("mlflow")
        self.once("accounts")
        self.start("ray", "worker", "tls")

    def down(self) -> None:
        """All of it, data too; podman-compose forgets workers but the first."""
        ours = f"label=io.podman.compose.project={self.project}"
        listed = self.run("podman", "ps", "-aq", "--filter", ours).split()
        if listed:
            self.run("podman", "rm", "-f", "-t", "2", *listed)
        self("down", "--volumes", check=False)

    def client_env(self) -> dict[str, str]:
        """What client.env sets: all by TLS, as for another machine."""
        told = self.run("env", "-i", "bash", "-c", ". ./client.env; unset PWD SHLVL; export -p")
        lines = [line.removeprefix("declare -x ") for line in told.splitlines() if "=" in line]
        return {name: value.strip('"') for name, value in (line.split("=", 1) for line in lines)}
