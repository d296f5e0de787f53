"""Short storms here; `make chaos` has the long ones. The seed is printed: the same one again is

python -m tests.tracking.chaos FOLDER SEED KILLS
"""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.projects import ROOT


def storm(root: Path, kills: int, timeout_s: float) -> str:
    seed = os.environ.get("CHAOS_SEED") or str(secrets.randbelow(10**6))
    print(f"seed {seed}")
    command = [sys.executable, "-m", "tests.tracking.chaos", str(root), seed, str(kills)]
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s
    )
    print(done.stdout)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_killed_at_random_nothing_is_lost_doubled_or_left_running(
    tmp_path: Path, database: Path
) -> None:
    shutil.copy(database, tmp_path)
    assert "points lost" in storm(tmp_path, 2, timeout_s=280)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_long_storm(tmp_path: Path, database: Path) -> None:
    for n in range(5):
        root = tmp_path / str(n)
        root.mkdir()
        shutil.copy(database, root)
        storm(root, 20, timeout_s=3600)
