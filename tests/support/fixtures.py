"""Fixtures of several rooms. What they need takes seconds to import, so each imports it itself."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The crops' folders of the stages before training. Shared: change nothing."""
    from tests.support.crops import make_crops

    return make_crops(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests that ask for it."""
    from tests.support.crops import ray_on_two_cpus

    yield from ray_on_two_cpus()


@pytest.fixture
def job_store(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """This process is of a job, whose machines share this store; its data are nowhere."""
    from tests.support.crops import store_of_a_job

    return store_of_a_job(tmp_path, monkeypatch)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker: this process."""
    from tests.support.crops import train_in_this_process

    train_in_this_process(monkeypatch)


@pytest.fixture(scope="module")
def new_state(tmp_path_factory: pytest.TempPathFactory, database: Any) -> Iterator[Any]:
    """Called, it gives this process another, empty place for runs and MLflow's database."""
    from tests.support.crops import states_of

    yield from states_of(tmp_path_factory, database)


@pytest.fixture
def start(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts processes that track a run step by step, without end; at the end they are killed."""
    from tests.support.tracked_runs import start_processes

    yield from start_processes(tmp_path, monkeypatch)
