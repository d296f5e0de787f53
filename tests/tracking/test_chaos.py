"""Short storms here; `make chaos` has the long ones. The seed is printed; CHAOS_SEED takes one."""

import os
import secrets
import shutil
from pathlib import Path

import pytest

from tests.support.environment import in_state
from tests.tracking.chaos import Storm


def storm(root: Path, database: Path, kills: int, patch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    shutil.copy(database, root)
    in_state(root, patch)
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10**6))
    print(f"seed {seed}")
    raging = Storm(root, seed, kills)
    raging.rage()
    print(raging.table())
    assert not raging.faults.total(), f"seed {seed}\n{raging.table()}"


def test_killed_at_random_nothing_is_lost_doubled_or_left_running(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm(tmp_path / "storm", database, 3, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_long_storm(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        storm(tmp_path / str(n), database, 20, monkeypatch)
