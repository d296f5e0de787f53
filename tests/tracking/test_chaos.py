"""Short storms here; `make chaos` has the long ones. The seed is printed; CHAOS_SEED takes one."""

import os
import random
import secrets
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.support.environment import in_state
from tests.tracking.chaos import Storm
from tests.tracking.training_storm import EACH_ONCE, random_kills
from tests.tracking.training_storm import Storm as TrainingStorm

SEQUENCES, KILLS = 2, 3


def seed(n: int = 0) -> int:
    chosen = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10**6)) + n
    print(f"seed {chosen}")
    return chosen


def storm(root: Path, database: Path, kills: int, patch: pytest.MonkeyPatch, n: int = 0) -> None:
    root.mkdir()
    shutil.copy(database, root)
    in_state(root, patch)
    raging = Storm(root, seed(n), kills)
    raging.rage()
    print(raging.table())
    assert not raging.faults.total(), raging.table()


def test_killed_at_random_nothing_is_lost_doubled_or_left_running(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm(tmp_path / "storm", database, 3, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_long_storm(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        storm(tmp_path / str(n), database, 20, monkeypatch, n)


@pytest.mark.long
@pytest.mark.needs_postgres
@pytest.mark.timeout(7200)
def test_a_training_whatever_of_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once in one training, then some at random, with the random numbers of one seed."""
    source = random.Random(seed())
    raging = TrainingStorm(tmp_path, monkeypatch)
    try:
        raging.train("undisturbed", [], source)
        raging.train("each once", EACH_ONCE, source)
        sequences = int(os.environ.get("CHAOS_SEQUENCES") or SEQUENCES)
        for n, kills in enumerate(random_kills(source, sequences, KILLS), 1):
            raging.train(f"at random {n}", kills, source)
    finally:
        print(raging.table())
        raging.close()
    assert not sum(map(Counter.total, raging.faults.values())), raging.table()
