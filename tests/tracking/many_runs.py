"""How long the questions take that are asked of a database of many runs: `python -m ... [RUNS]`.

SQLite, in this process: no server lies between. The runs are copies of one that was delivered, by
SQL: each has its params, tags and metrics, and each twentieth has the others below it, as a sweep.
"""

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gliotrail.paths import state_dir
from gliotrail.runs.local_runs import all_runs, look_at
from gliotrail.runs.owner import Watch
from gliotrail.tracking.client import client, existing_run
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.reaper import close_there, own_ids, was_closed
from gliotrail.tracking.sync import close_twins, sync_all
from tests.support.environment import in_state
from tests.support.tracked_runs import finished

HERE, TRIALS = 20, 20
KEYS = 25
COPIES = {
    "runs": "run_uuid", "tags": "run_uuid", "params": "run_uuid", "latest_metrics": "run_uuid",
    "metrics": "run_uuid",
}  # fmt: skip
NUMBERS = "with recursive n(n) as (select 1 union all select n + 1 from n where n < :runs)"


def fill(database: Path, run_id: str, own_id: str, runs: int) -> None:
    """Copy a run so often; ids are numbers."""
    with closing(sqlite3.connect(database)) as db, db:
        for key in range(KEYS):
            for table, more in (("latest_metrics", ""), ("metrics", "")):
                db.execute(
                    f"insert into {table}(key, value, timestamp, step, is_nan, run_uuid{more}) "
                    "values (?, 0.5, 1, 1, 0, ?)", (f"val/made_up_{key}", run_id),
                )  # fmt: skip
        for table, column in COPIES.items():
            names = [row[1] for row in db.execute(f"pragma table_info({table})")]
            others = [name for name in names if name != column]
            listed = ", ".join(others)
            db.execute(
                f"{NUMBERS} insert into {table}({column}, {listed}) "
                f"select printf('%032x', n), {listed} from {table}, n where {column} = :run",
                {"runs": runs, "run": run_id},
            )
        db.execute(
            "update tags set value = 'copy ' || run_uuid where key = 'gliotrail.id' and value = ?"
            " and run_uuid <> ?", (own_id, run_id),
        )  # fmt: skip
        db.execute(
            f"{NUMBERS} insert into tags(run_uuid, key, value) select printf('%032x', n), "
            "'mlflow.parentRunId', printf('%032x', n - n % :trials) from n where n % :trials "
            "and n > :trials",
            {"runs": runs, "trials": TRIALS},
        )


def timed(what: str, work: Callable[[], object]) -> float:
    """Twice, the second of which counts: the first imports."""
    work()
    started_s = time.perf_counter()
    work()
    took_s = time.perf_counter() - started_s
    print(f"{what:34}{took_s:7.2f} s", flush=True)
    return took_s


def main(runs: int) -> None:
    """Tell how long each takes."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        in_state(Path(place), patch)
        here = [finished(state_dir() / f"runs/{n}") for n in range(HERE)]
        started_s = time.perf_counter()
        ids = [deliver(run, client()) for run in here]
        print(f"{HERE} deliveries {time.perf_counter() - started_s:.1f} s", flush=True)
        own_id = here[0].describe()["id"]
        fill(state_dir() / "mlflow.db", ids[0], own_id, runs)
        server = client()
        experiment = server.get_run(ids[0]).info.experiment_id
        sweep = f"tags.`mlflow.parentRunId` = '{TRIALS:032x}'"
        print(f"{runs} runs in one experiment, {HERE} of them of this checkout")
        timed("gliotrail runs status", lambda: [look_at(run) for run in all_runs()])
        timed("gliotrail runs sync", sync_all)
        timed("  of which twins", lambda: close_twins(server))
        timed("a run by our id", lambda: existing_run(server, "tests", own_id))
        timed("trials of a sweep", lambda: server.search_runs([experiment], sweep))
        timed("a look after others", lambda: close_there(server, Watch(), own_ids()))
        timed("whether one of ours was closed", lambda: was_closed(server))
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
