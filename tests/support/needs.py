"""Markers for what pip can't bring. Where it is absent the test is skipped, naming the command
that brings it; with GLIOTRAIL_CI=1, where everything was installed, it fails instead.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Need:
    """Something a test needs, how to see whether it is there, and the command that brings it."""

    what: str
    is_there: Callable[[], bool]
    command: str


def postgres_bin() -> Path | None:
    """The folder of PostgreSQL's server programs. Debian keeps it out of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += [initdb.parent for initdb in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: folder.parent.name, default=None)


def _can_make_namespaces() -> bool:
    command = ["unshare", "--net", "--mount", "ip", "link"]
    return (
        all(map(shutil.which, ("unshare", "ip")))
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


def _has_images() -> bool:
    ask = ["podman", "image", "exists", "localhost/gliotrail-slurm"]
    return shutil.which("podman") is not None and not subprocess.run(ask, check=False).returncode


NEEDS = {
    "needs_images": Need(
        "podman and the images of the tests, as root", _has_images, "make cluster-images"
    ),
    "needs_chromium": Need(
        "Chromium and its driver",
        lambda: all(map(shutil.which, ("chromium", "chromedriver"))),
        "make services",
    ),
    "needs_postgres": Need("PostgreSQL", lambda: postgres_bin() is not None, "make services"),
    "needs_root": Need("root", lambda: os.geteuid() == 0, "sudo make test"),
    "needs_netns": Need(
        "network namespaces", _can_make_namespaces, "make services, then sudo make test"
    ),
    "needs_trainers": Need(
        "Lightning and transformers",
        lambda: all(map(find_spec, ("lightning", "transformers", "accelerate"))),
        "make integrations-test",
    ),
    "peers": Need("the peers", (ROOT / ".venv-bench/.installed").is_file, "make peers"),
}


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    for name, need in NEEDS.items():
        config.addinivalue_line("markers", f"{name}: needs {need.what}; {need.command}")
    config.addinivalue_line("markers", "long: minutes; runs only when asked for by -m long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out unless -m asks for them."""
    if "long" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose needs are not met, before its fixtures are made."""
    for name, need in NEEDS.items():
        if item.get_closest_marker(name) and not _is_there(name):
            reason = f"needs {need.what}: {need.command}"
            if os.environ.get("GLIOTRAIL_CI") == "1":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


@functools.cache
def _is_there(name: str) -> bool:
    return NEEDS[name].is_there()
