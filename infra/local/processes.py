"""Start processes, see whether they answer, and end exactly those that were started.

A process is known by the boot, its number and its start, as runs' owners are. What it started in
its turn carries a mark in its environment, and is found also when its parent is gone.
"""

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from gliotrail.errors import ClusterError
from gliotrail.files import locked, write_json
from gliotrail.runs.owner import Owner, is_alive, process

MARK: Final = "GLIOTRAIL_SERVICES_MARK"
_STRANGE: Final = ("AWS_", "MLFLOW_", "PG", "RAY_", "WEED_")
_TO_END_S: Final = 45.0


@dataclass(frozen=True)
class Service:
    """A process to start: how, and how to see that it answers."""

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """More for Popen."""
    stop_signal: int = signal.SIGTERM


@dataclass(frozen=True)
class Processes:
    """What was started of an installation, as FOLDER/running.json tells it."""

    folder: Path

    def log(self, name: str) -> Path:
        """Where a service writes."""
        return self.folder / "logs" / f"{name}.log"

    def owners(self) -> dict[str, Owner]:
        """What was started and not ended, dead or alive."""
        return {name: Owner(**owner) for name, owner in self._read()["services"].items()}

    def is_running(self, name: str) -> bool:
        """Whether its process is there."""
        owner = self.owners().get(name)
        return owner is not None and bool(is_alive(owner))

    def start(self, service: Service) -> None:
        """Start it, unless it runs; without waiting until it answers."""
        if self.is_running(service.name):
            return
        log = self.log(service.name)
        log.parent.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_STRANGE)}
        with locked(self.folder / "running.lock"):
            value = self._read()
            env = kept | dict(service.env) | {MARK: value["mark"]}
            with log.open("ab") as output:
                started = subprocess.Popen(
                    service.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    env=env, start_new_session=True, **service.options,
                )  # fmt: skip
            value["services"][service.name] = asdict(process(started.pid))
            write_json(self.folder / "running.json", value)

    def wait(self, service: Service, timeout_s: float = 240) -> None:
        """Until it answers. One that ended is started again, once: Ray ends where this machine has
        so much to do that one of its own parts is late.

        Raises:
            ClusterError: it ended twice, or takes longer.
        """
        ends_s, again = time.monotonic() + timeout_s, False
        while not service.is_ready():
            runs = self.is_running(service.name)  # asked once: it may end between two questions
            if not runs and not again:
                again = True
                self.start(service)
            elif not runs or time.monotonic() > ends_s:
                last = self.log(service.name).read_text(errors="replace").splitlines()[-1:]
                what = "does not answer" if runs else "ended at its start"
                log = self.log(service.name)
                raise ClusterError(f"{service.name} {what}", where=log, got=" ".join(last) or None)
            time.sleep(0.2)

    def stop(self, services: Sequence[Service]) -> list[str]:
        """End them one after the other, and all that they started.

        Returns:
            the names of those that ran.
        """
        stopped = []
        for service in services:
            owner = self.owners().get(service.name)
            if owner is not None and is_alive(owner):
                top = psutil.Process(owner.pid)
                family = [top, *top.children(recursive=True)]
                top.send_signal(service.stop_signal)
                psutil.wait_procs([top], timeout=_TO_END_S)
                _end(family)
                stopped.append(service.name)
            with locked(self.folder / "running.lock"):
                value = self._read()
                value["services"].pop(service.name, None)
                write_json(self.folder / "running.json", value)
        if not self.owners():
            _end(self._marked())
            (self.folder / "running.json").unlink(missing_ok=True)
        return stopped

    def _marked(self) -> list[psutil.Process]:
        mark = self._read()["mark"]
        return [each for each in psutil.process_iter() if _environment(each).get(MARK) == mark]

    def _read(self) -> dict[str, Any]:
        path = self.folder / "running.json"
        if path.is_file():
            value: dict[str, Any] = json.loads(path.read_text())
            return value
        return {"mark": secrets.token_hex(16), "services": {}}


def _environment(each: psutil.Process) -> dict[str, str]:
    try:
        return each.environ()
    except (psutil.Error, OSError):
        return {}


def _end(family: list[psutil.Process]) -> None:
    """Ask processes to end, and kill those that don't."""
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for each in family:
            try:
                ask(each)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=5)
