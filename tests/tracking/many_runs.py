"""How long the questions take that are asked of a database of many runs.

    python -m tests.tracking.many_runs [RUNS] [sqlite|postgres]

MLflow's own store works in this process: no server of it lies between. The runs are copies of one
that was delivered, by SQL: each has its params, tags and metrics, and each twentieth has the others
below it, as a sweep. Beside the seconds: processor time, here and PostgreSQL's, and what was asked.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, create_engine, event, inspect, text

from gliotrail.paths import state_dir
from gliotrail.runs.local_runs import all_runs, look_at
from gliotrail.runs.owner import Watch
from gliotrail.tracking.client import client, existing_run
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.reaper import close_there, own_ids, was_closed
from gliotrail.tracking.sync import close_twins, sync_all
from tests.support.environment import in_state
from tests.support.services import Postgres
from tests.support.tracked_runs import finished

HERE, TRIALS = 20, 20
KEYS = 25
COPIES = {
    "runs": "run_uuid", "tags": "run_uuid", "params": "run_uuid", "latest_metrics": "run_uuid",
    "metrics": "run_uuid",
}  # fmt: skip
NUMBERS = "with recursive n(n) as (select 1 union all select n + 1 from n where n < :runs)"
HEX = {"sqlite": "printf('%032x', {})", "postgresql": "lpad(to_hex({}), 32, '0')"}


def fill(engine: Engine, run_id: str, own_id: str, runs: int) -> None:
    """Copy a run so often; ids are numbers."""
    as_id, values = HEX[engine.dialect.name].format, {"runs": runs, "run": run_id}
    with engine.begin() as db:

        def do(query: str, **more: object) -> None:
            db.execute(text(query), values | more)

        for key in range(KEYS):
            for table in ("latest_metrics", "metrics"):
                do(
                    f"insert into {table}(key, value, timestamp, step, is_nan, run_uuid) "
                    f"values ('val/made_up_{key}', 0.5, 1, 1, false, :run)"
                )
        for table, column in COPIES.items():
            names = [str(each["name"]) for each in inspect(db).get_columns(table)]
            listed = ", ".join(name for name in names if name != column)
            do(
                f"{NUMBERS} insert into {table}({column}, {listed}) "
                f"select {as_id('n')}, {listed} from {table}, n where {column} = :run"
            )
        do(
            "update tags set value = 'copy ' || run_uuid where key = 'gliotrail.id' "
            "and value = :own and run_uuid <> :run", own=own_id,
        )  # fmt: skip
        do(
            f"{NUMBERS} insert into tags(run_uuid, key, value) select {as_id('n')}, "
            f"'mlflow.parentRunId', {as_id('n - n % :trials')} from n where n % :trials > 0 "
            "and n > :trials", trials=TRIALS,
        )  # fmt: skip
        do("analyze")


@dataclass
class Store:
    """Where MLflow's data are; `asked` counts statements and rows as the database itself does."""

    engine: Engine
    processes: dict[str, int]

    def used_s(self) -> Counter[str]:
        """Processor time, of each process and those below it."""
        of = Counter({"here": time.process_time()})
        for name, pid in self.processes.items():
            top = psutil.Process(pid)
            for process in (top, *top.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    of[name] += sum(process.cpu_times()[:2])
        return of

    def asked(self) -> Counter[str]:
        """Statements and rows so far, where PostgreSQL counts them."""
        if self.engine.dialect.name == "sqlite":
            return Counter()
        query = "select sum(calls), sum(rows) from pg_stat_statements where query !~ 'pg_stat'"
        with self.engine.connect() as db:
            calls, rows = db.execute(text(query)).one()
        return Counter({"statements": int(calls), "rows": int(rows)})


@contextmanager
def started(kind: str, place: Path) -> Iterator[Store]:
    """SQLite needs none."""
    if kind == "sqlite":
        client()
        yield Store(create_engine(f"sqlite:///{state_dir()}/mlflow.db"), {})
        return
    database = Postgres(place / "postgres.log", "shared_preload_libraries=pg_stat_statements")
    try:
        os.environ["MLFLOW_TRACKING_URI"] = database.uri
        client()
        engine = create_engine(database.uri)
        with engine.begin() as db:
            db.execute(text("create extension pg_stat_statements"))
        assert database.process
        yield Store(engine, {"postgres": database.process.pid})
    finally:
        database.remove()


def timed(what: str, work: Callable[[], object], store: Store) -> None:
    """Twice, the second of which counts: the first imports."""
    work()
    statements: list[str] = []
    if store.engine.dialect.name == "sqlite":

        @event.listens_for(Engine, "before_cursor_execute")
        def _note(_c: object, _cu: object, statement: str, *_: object) -> None:
            statements.append(statement)

    before_s, asked = store.used_s(), store.asked()
    started_s = time.perf_counter()
    work()
    took_s = time.perf_counter() - started_s
    used, asked = store.used_s() - before_s, store.asked() - asked
    told = ", ".join(f"{name} {s:.2f} s" for name, s in used.items())
    counted = (
        ", ".join(f"{n} {name}" for name, n in asked.items()) or f"{len(statements)} statements"
    )
    print(f"{what:32}{took_s:7.2f} s; processor {told}; {counted}", flush=True)


def main(runs: int, kind: str) -> None:
    """Tell how long each takes."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        in_state(Path(place), patch)
        with started(kind, Path(place)) as store:
            here = [finished(state_dir() / f"runs/{n}") for n in range(HERE)]
            ids = [deliver(run, client()) for run in here]
            own_id, server = here[0].describe()["id"], client()
            fill(store.engine, ids[0], own_id, runs)
            experiment = server.get_run(ids[0]).info.experiment_id
            sweep = f"tags.`mlflow.parentRunId` = '{TRIALS:032x}'"
            print(f"{kind}: {runs} runs in one experiment, {HERE} of them of this checkout")
            for what, work in {
                "gliotrail runs status": lambda: [look_at(run) for run in all_runs()],
                "gliotrail runs sync": sync_all,
                "  of which twins": lambda: close_twins(server),
                "a run by our id": lambda: existing_run(server, "tests", own_id),
                "trials of a sweep": lambda: server.search_runs([experiment], sweep),
                "a look after others": lambda: close_there(server, Watch(), own_ids()),
                "whether one of ours was closed": lambda: was_closed(server),
            }.items():
                timed(what, work, store)
    os._exit(0)


if __name__ == "__main__":
    main(int([*sys.argv, "", ""][1] or 10_000), [*sys.argv, "", ""][2] or "sqlite")
