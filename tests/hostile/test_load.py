"""Many runs at once lose nothing."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.hostile import load
from tests.hostile.load import EXPERIMENT, POINTS, PROCESSES, RUNS, WRITES
from tests.support.forked import Forked
from tests.support.services import MlflowServer, Postgres


@pytest.mark.long
@pytest.mark.needs_postgres
@pytest.mark.timeout(1500)
def test_two_hundred_runs_at_once_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Postgres(tmp_path / "postgres.log")
    web = MlflowServer(tmp_path / "mlflow.log", database.uri, tmp_path / "artifacts")
    try:
        web.start()
        web.wait()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", web.uri)
        server = MlflowClient(web.uri)
        experiment = server.create_experiment(EXPERIMENT)
        logs = [tmp_path / f"{n}.log" for n in range(PROCESSES)]
        for n, log in enumerate(logs):
            Forked(log, load.write_runs, tmp_path, n)
        time.sleep(20)  # all have loaded MLflow and wait
        started = time.perf_counter()
        (tmp_path / "go").touch()
        while len(told := list(tmp_path.glob("*.json"))) < PROCESSES:
            time.sleep(0.5)
        took_s = time.perf_counter() - started
        writes_s = np.array([s for path in told for s in json.loads(path.read_text())])

        runs = server.search_runs([experiment], max_results=1000)
        assert len(runs) == PROCESSES * RUNS
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            process, number = map(int, run.data.tags["who"].split())
            wanted = {
                (p.key, p.step, p.value, p.time_ms)
                for write in range(WRITES)
                for p in load.points_of(process, number, write)
            }
            got = [
                (m.key, m.step, m.value, m.timestamp)
                for key in run.data.metrics
                for m in server.get_metric_history(run.info.run_id, key)
            ]
            assert len(got) == len(wanted) and set(got) == wanted
        p50, p99 = np.percentile(writes_s, [50, 99])
        print(
            f"\n{len(runs)} runs from {PROCESSES} processes, {len(writes_s)} writes, "
            f"{len(runs) * WRITES * POINTS * 2} points in {took_s:.0f} s: none lost; a write took "
            f"{p50:.2f} s in the median, {p99:.2f} s at p99, {writes_s.max():.2f} s at most"
        )
    finally:
        web.kill()
        database.remove()
