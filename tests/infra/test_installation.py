"""What `make setup` installs: by which Pythons, and what is said where it fails."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.support.projects import ROOT


def test_every_pinned_package_takes_the_first_python_3_11():
    """Debian 12 has 3.11.2. `make resolve` asks the package index, of 3.12 and 3.13 too."""
    refused = [
        f"{each.metadata['Name']} {each.version}: {each.metadata['Requires-Python']}"
        for each in metadata.distributions(path=[str(Path(pytest.__file__).parents[1])])
        if "3.11.0" not in SpecifierSet(each.metadata.get("Requires-Python") or "")
    ]
    assert refused == []


@pytest.mark.long
def test_a_failed_installation_shows_pips_last_lines(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "constraints.txt").write_text("")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\ndependencies = ["there-is-none==1"]\n'
        '[project.optional-dependencies]\ndev = []\n'
    )  # fmt: skip
    env = {**os.environ, "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        ["make", "setup", f"PYTHON={sys.executable}"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "ERROR: No matching distribution found" in done.stderr
    assert "error: installing into .venv failed" in done.stderr
    assert not (tmp_path / ".venv/.installed").exists()


def test_stages_find_the_environment_that_is_not_activated(tmp_path):
    (tmp_path / "pipelines").mkdir()
    shutil.copy(ROOT / "pipelines/python", tmp_path / "pipelines")
    bare = {"PATH": "/usr/bin:/bin"}
    ask = ["pipelines/python", "-c", "import gliotrail, sys; print(sys.executable)"]
    without = subprocess.run(ask, cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert without.returncode == 1
    assert "`make setup` makes .venv" in without.stderr
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)
    within = subprocess.run(ask, cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert within.stdout.strip() == sys.executable
