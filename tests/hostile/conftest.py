"""Counts what was tried and what came of it. The long tests' seed is HOSTILE_SEED, else new."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from gliotrail.errors import GliotrailError
from tests.support.limits import at_most_more

if TYPE_CHECKING:
    from infra.local.settings import Settings

SEED = int(os.environ.get("HOSTILE_SEED") or time.time_ns() % 2**32)
_A_HANG_S = 20.0  # what takes milliseconds alone takes a second beside others
_MEMORY_BYTES = 300 * 2**20


@dataclass
class Tally:
    """What became of hostile input. A crash is any end but a GliotrailError of one line."""

    inputs: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    wrong: int = 0

    def refusal(self, work: Callable[..., object], *arguments: object) -> str | None:
        """Attack `work`, in bounded memory; how it was refused, None if it was not."""
        self.inputs += 1
        started_s = time.perf_counter()
        try:
            with at_most_more(_MEMORY_BYTES), warnings.catch_warnings():
                warnings.simplefilter("error")
                work(*arguments)
            line = None
        except GliotrailError as error:
            line = str(error)
            self.refused += 1
            self.crashes += not line.isprintable()
            assert line.isprintable(), line  # not two lines, nothing that a terminal obeys
        except BaseException:
            self.crashes += 1
            raise
        late = time.perf_counter() - started_s > _A_HANG_S
        self.hangs += late
        assert not late
        return line

    def check(self, is_right: bool) -> None:
        """What was accepted must be what the input says."""
        self.wrong += not is_right
        assert is_right, "a silent wrong result"


TALLY = Tally()


@pytest.fixture(scope="session")
def tally() -> Tally:
    """Of all tests of this room."""
    return TALLY


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the many files of all examples."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Settings]":
    """PostgreSQL, S3, MLflow's server and a Ray head as infra/local starts them; for long tests."""
    from infra.local import __main__ as infra_local
    from infra.local.settings import load

    settings = load(tmp_path_factory.mktemp("state") / "services")
    infra_local.start_all(settings)
    yield settings
    infra_local.remove(settings.folder, yes=True)


def fuzz(examples: int, use: int = 1, **strategies: SearchStrategy[Any]) -> Callable[..., Any]:
    """`given`, with a fixed number of examples from a fixed seed."""

    def decorate(test: Callable[..., Any]) -> Any:
        fixed = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        return seed(use)(fixed(given(**strategies)(test)))

    return decorate


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the counts."""
    if TALLY.inputs:
        terminalreporter.write_line(
            f"hostile input, long tests with seed {SEED}: {TALLY.inputs} tried, {TALLY.refused} "
            f"refused in one line; {TALLY.crashes} crashes, {TALLY.hangs} hangs, {TALLY.wrong} "
            "silent wrong results"
        )
