"""The same surroundings for every test, whoever runs it and wherever: no home, no network."""

import errno
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

STRANGE = ("AWS_", "DVC_", "GIT_", "GLIOTRAIL_", "MLFLOW_", "RAY_")
GIT_CONFIG = """\
[user]
    name = A Test
    email = test@example.org
[safe]
    directory = *
[init]
    defaultBranch = main
"""


@pytest.hookimpl(trylast=True)  # after the terminal reporter has chosen its own colours
def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module, and so torch or Ray, is imported."""
    home = Path(tempfile.mkdtemp(prefix="gliotrail-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    (home / ".gitconfig").write_text(GIT_CONFIG)  # DVC's libgit2 knows no GIT_CONFIG_GLOBAL
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for name in [n for n in os.environ if n.startswith(STRANGE) and n != "GLIOTRAIL_CI"]:
        patch.delenv(name)
    for name, value in {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GLIOTRAIL_STATE": str(home / "state"),  # a temporary project has its own
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }.items():
        patch.setenv(name, value)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a script's background: children
        signal.signal(signal.SIGINT, signal.default_int_handler)  # inherit it, and Ctrl-C is tested
    if torch := sys.modules.get("torch"):  # a room named on the command line imported it already
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if os.environ.get("GLIOTRAIL_CI"):  # the same examples each time; elsewhere new ones are sought
        settings.register_profile("again", derandomize=True)
        settings.load_profile("again")
    patch.setattr(socket.socket, "connect", _only_here(socket.socket.connect))
    patch.setattr(socket.socket, "connect_ex", _only_here(socket.socket.connect_ex))


def _only_here(connect: Any) -> Any:
    """Refuse a stream to another machine: no test may lean on the network by accident."""

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in {socket.AF_INET, socket.AF_INET6} and self.type == socket.SOCK_STREAM:
            host = address[0]
            if not is_here(host):
                message = f"tests talk to this machine only, not to {host}"
                raise ConnectionRefusedError(errno.ECONNREFUSED, message)
        return connect(self, address)

    return guarded


def is_here(host: str) -> bool:
    """Whether a host's name or address is this machine."""
    if host in {"localhost", socket.gethostname()}:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    own = {
        card.address.partition("%")[0] for cards in psutil.net_if_addrs().values() for card in cards
    }
    return str(address) in own


def in_state(state: Path, patch: pytest.MonkeyPatch) -> None:
    """Move this process to another place for runs, and to the database there."""
    patch.setenv("GLIOTRAIL_STATE", str(state))
    patch.setenv("MLFLOW_TRACKING_URI", "")  # set, so that undoing ends what MLflow sets itself


@pytest.fixture(autouse=True)
def _mlflow_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLflow makes of its address in a test ends with the test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", ""))


@pytest.fixture(autouse=True)
def no_run_is_held_any_more() -> Iterator[None]:
    """What a test that failed, or broke off, still held is released: the next one holds nothing."""
    yield
    owner = sys.modules.get("gliotrail.runs.owner")
    for run in owner.held() if owner else ():
        with suppress(OSError):
            owner.release(run)
        owner._HELD.pop(run.root, None)
