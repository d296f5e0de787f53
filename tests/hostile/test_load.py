"""Many runs at once lose nothing."""

import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from gliotrail.runs.journal import RunFolder
from tests.hostile import load
from tests.hostile.load import CHECKPOINTS, PROCESSES, RUNS, STEPS
from tests.support.database import Database
from tests.support.forked import Forked

if TYPE_CHECKING:
    from infra.local.settings import Settings


def until_all(paths: list[Path], processes: list[Forked], timeout_s: float) -> None:
    """Wait for a file of each process, none of which may fail meanwhile."""
    ends_s = time.monotonic() + timeout_s
    while not all(path.exists() for path in paths):
        failed = [each.printed()[-2000:] for each in processes if each.poll() not in (None, 0)]
        assert not failed, failed[0]
        assert time.monotonic() < ends_s, [path.name for path in paths if not path.exists()]
        time.sleep(0.2)


def used_s(settings: "Settings") -> Counter[str]:
    """Processor time of each service, of all its processes."""
    from infra.local.processes import Processes

    of: Counter[str] = Counter()
    for name, owner in Processes(settings.folder).owners().items():
        top = psutil.Process(owner.pid)
        for process in (top, *top.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                of[name] += sum(process.cpu_times()[:4])  # its children that ended are the last two
    return of


@pytest.mark.long
@pytest.mark.needs_postgres
@pytest.mark.timeout(900)
def test_two_hundred_runs_at_once_lose_nothing(
    services: "Settings", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.local import postgres

    for name, value in services.client_env().items():
        monkeypatch.setenv(name, value)
    numbers = range(PROCESSES)
    processes = [Forked(tmp_path / f"{n}.log", load.work, tmp_path, n) for n in numbers]
    until_all([tmp_path / f"{n}.ready" for n in numbers], processes, 300)
    before = used_s(services)
    started_s = time.perf_counter()
    (tmp_path / "go").touch()
    until_all([tmp_path / f"{n}.json" for n in numbers], processes, 700)
    all_s, used = time.perf_counter() - started_s, used_s(services) - before

    parts = [json.loads((tmp_path / f"{n}.json").read_text()) for n in numbers]
    writes_s = np.array([seconds for part, _, _ in parts for seconds in part])
    refused = sorted({why for _, part, _ in parts for why in part})
    p50, p99 = np.percentile(writes_s, [50, 99])
    print(
        f"\n{PROCESSES * RUNS} runs from {PROCESSES} processes in {all_s:.0f} s: "
        f"{writes_s.size} deliveries, of {p50:.2f} s in the median, {p99:.2f} s at p99, "
        f"{writes_s.max():.2f} s at most; "
        f"{sum(len(part) for _, part, _ in parts)} refused at first {refused[:3]}"
    )
    used["deliveries"] = sum(part for _, _, part in parts)
    print("processor time: " + ", ".join(f"{name} {s:.0f} s" for name, s in used.most_common()))

    # by SQL: no server lies between
    database = Database(postgres.uri(services, "mlflow"))
    folders = [RunFolder(path) for path in tmp_path.glob("*-*")]
    assert len(folders) == PROCESSES * RUNS
    for run in folders:
        (recorded,) = database.runs(run.describe()["id"])
        points = run.points()
        assert recorded.status == "FINISHED"
        assert len(points) == CHECKPOINTS * STEPS * 2
        assert recorded.points == sorted((p.key, p.step, p.value, p.time_ms) for p in points)
    assert database.running() == 0
