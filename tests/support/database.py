"""What MLflow's own database holds of runs, read by SQL: no code of ours lies between.

SQLite and PostgreSQL alike.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, create_engine, event, text

READY = 2


@event.listens_for(Engine, "connect")
def without_fsync(connection: Any, _: object) -> None:
    """SQLite leaves it to the system when it writes: of power loss no test speaks.

    A process that is killed loses nothing by it, and each commit of MLflow's costs a hundredth.
    """
    if isinstance(connection, sqlite3.Connection):
        with suppress(sqlite3.DatabaseError):  # a spoilt file is for the test to find
            connection.execute("pragma synchronous = off")


@dataclass(frozen=True)
class Recorded:
    """An active run. Points are (key, step, value, time); models are statuses; outputs, ids."""

    run_id: str
    status: str
    points: list[tuple[str, int, float, int]]
    params: dict[str, str]
    tags: dict[str, str]
    models: list[int]
    versions: list[int]
    datasets: int
    outputs: int


class Database:
    """At a SQLAlchemy address."""

    def __init__(self, uri: str) -> None:
        self._engine = create_engine(uri)

    def ask(self, query: str, **values: Any) -> Sequence[Any]:
        """Rows of a query."""
        with self._engine.connect() as connection:
            return connection.execute(text(query), values).fetchall()

    def runs(self, own_id: str) -> list[Recorded]:
        """All active runs that carry an id of ours."""
        found = self.ask(
            "select r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'gliotrail.id' and t.value = :own and r.lifecycle_stage = 'active'",
            own=own_id,
        )
        return [self._recorded(run_id, status) for run_id, status in found]

    def _recorded(self, run_id: str, status: str) -> Recorded:
        def of(query: str) -> Sequence[Any]:
            return self.ask(query, run=run_id)

        points = of("select key, step, value, timestamp from metrics where run_uuid = :run")
        inputs = of("select source_type from inputs where destination_id = :run")
        outputs = of("select destination_id from inputs where source_id = :run")
        models = of(
            "select status from logged_models "
            "where source_run_id = :run and lifecycle_stage = 'active'"
        )
        versions = of(
            "select version from model_versions "
            "where run_id = :run and current_stage <> 'Deleted_Internal'"
        )
        return Recorded(
            run_id,
            status,
            sorted((key, step, value, time) for key, step, value, time in points),
            {str(k): str(v) for k, v in of("select key, value from params where run_uuid = :run")},
            {str(k): str(v) for k, v in of("select key, value from tags where run_uuid = :run")},
            [int(status) for (status,) in models],
            sorted(int(version) for (version,) in versions),
            sum(kind == "DATASET" for (kind,) in inputs),
            len(outputs),
        )

    def running(self) -> int:
        """How many active runs are RUNNING, whoever made them."""
        rows = self.ask(
            "select count(*) from runs where status = 'RUNNING' and lifecycle_stage = 'active'"
        )
        return int(rows[0][0])

    def champion(self) -> str | None:
        """The run of the version that is called champion."""
        rows = self.ask(
            "select v.run_id from registered_model_aliases a join model_versions v "
            "on v.name = a.name and v.version = a.version where a.alias = 'champion'"
        )
        return str(rows[0][0]) if rows else None
