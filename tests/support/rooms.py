"""Seconds per room of tests/ against its budget, and a last line that counts in plain words.

`make test` runs two processes: in one the files whose tests ask for Ray or a whole pipeline, so
that no two of those compete; in the other the rest, file by file, until both are at their end.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

BUDGET_S = {
    "imaging": 60,
    "segmentation": 120,
    "runs and tracking": 150,
    "training, search, cluster": 180,
    "report and browser": 60,
    "cli and docs": 60,
    "dataset": 60,
    "spine": 90,
    "bench": 20,
    "infra": 20,
    "hostile": 20,
}
ROOM_OF_FOLDER = {
    "synthesis": "imaging",
    "runs": "runs and tracking",
    "tracking": "runs and tracking",
    "training": "training, search, cluster",
    "search": "training, search, cluster",
    "cluster": "training, search, cluster",
    "integrations": "training, search, cluster",
    "report": "report and browser",
    "browser": "report and browser",
    "cli": "cli and docs",
    "docs": "cli and docs",
}
ROOM_OF_FIXTURE = {"reproduced": "spine"}
"""Made once, for whoever asks first; charged to one room whoever that is."""
OF_RAY = re.compile(r"\b(ray_cluster|reproduced|reproduced_copy|starts_ray)\b")
"""Fixtures and the marker of tests that start Ray, or take the one `dvc repro` of a session."""

SECONDS = pytest.StashKey[defaultdict[str, float]]()
ELSEWHERE = "(charged elsewhere)"


def pytest_configure(config: pytest.Config) -> None:
    """Start all rooms at zero."""
    config.addinivalue_line("markers", "starts_ray: a Ray of its own, beside no other")
    config.stash[SECONDS] = defaultdict(float)


def room_of(folder: str) -> str:
    """The room that a folder of tests/ counts for."""
    return ROOM_OF_FOLDER.get(folder, folder)


@cache
def starts_ray(path: Path) -> bool:
    """Whether a file's tests ask for Ray. By its text: xdist's controller knows names alone."""
    return OF_RAY.search(path.read_text(encoding="utf-8")) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray first: they take longest; and of these those with a Ray of their own
    before those that share the session's, in which it would be that one.
    """
    items.sort(
        key=lambda item: (not starts_ray(item.path), item.get_closest_marker("starts_ray") is None)
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All files that start Ray in one process; of the rest each file."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "starts_ray" if starts_ray(config.rootpath / file) else file

    return Scheduler(config, log)


def _room(item: pytest.Item) -> str:
    return room_of(item.path.relative_to(item.config.rootpath).parts[1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Charge a test, its fixtures included, to its room."""
    seconds = item.config.stash[SECONDS]
    started, elsewhere = perf_counter(), seconds[ELSEWHERE]
    outcome = yield
    seconds[_room(item)] += perf_counter() - started - (seconds[ELSEWHERE] - elsewhere)
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Charge a shared fixture to its own room, not to the test that came first."""
    started = perf_counter()
    try:
        return (yield)
    finally:
        if fixturedef.argname in ROOM_OF_FIXTURE:
            for room in (ROOM_OF_FIXTURE[fixturedef.argname], ELSEWHERE):
                request.config.stash[SECONDS][room] += perf_counter() - started


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what one of several processes spent."""
    for room, spent_s in getattr(node, "workeroutput", {}).get("seconds", {}).items():
        node.config.stash[SECONDS][room] += spent_s


def table(seconds: Mapping[str, float]) -> list[str]:
    """One line a room: its seconds, its budget, and a mark where it is over."""
    lines = []
    for room in [*BUDGET_S, *sorted(set(seconds) - {*BUDGET_S, ELSEWHERE})]:
        if room in seconds:
            spent_s, budget_s = seconds[room], BUDGET_S.get(room)
            mark = "  OVER" if budget_s is not None and spent_s > budget_s else ""
            lines.append(f"{room:26}{spent_s:7.1f} of {budget_s or '-':>4}{mark}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    seconds = terminalreporter.config.stash[SECONDS]
    if seconds:
        terminalreporter.write_sep("=", "seconds per room, of its budget")
    for line in table(seconds):
        terminalreporter.write_line(line, red="OVER" in line)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the outermost: after pytest's own last line
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    """Count once more, in plain words."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["seconds"] = dict(session.config.stash[SECONDS])
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not session.config.option.collectonly:
        n = Counter({kind: len(reports) for kind, reports in reporter.stats.items()})
        failed = n["failed"] + n["error"]
        reporter.write_line(f"tests: {n['passed']} passed, {failed} failed, {n['skipped']} skipped")
    return result
