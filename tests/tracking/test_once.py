"""One of each thing in MLflow, whatever becomes of a request or of its answer."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from gliotrail.paths import state_dir
from gliotrail.runs.owner import Watch, claim, release
from gliotrail.tracking import once, registry, server_checks
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.once import TWIN_TAG
from gliotrail.tracking.reaper import reap
from gliotrail.tracking.registry import MODEL
from gliotrail.tracking.sync import close_twins
from tests.support.database import READY, Database
from tests.support.environment import in_state
from tests.support.proxy import Proxy
from tests.support.services import MlflowServer
from tests.support.tracked_runs import begun, finished
from tests.tracking.lost_calls import Calls, Case
from tests.tracking.test_chaos import seed
from tests.tracking.test_evaluation_record import record, trained

PATIENCE_S = 4
CREATIONS = ("create_run", "create_logged_model", "create_model_version")
Call = Callable[..., Any]


def lost_before(call: Call, *args: Any, **more: Any) -> Any:
    raise MlflowException("502")


def lost_after(call: Call, *args: Any, **more: Any) -> Any:
    call(*args, **more)
    raise MlflowException("502")


def twice(call: Call, *args: Any, **more: Any) -> Any:
    call(*args, **more)
    return call(*args, **more)


@pytest.fixture
def by_sql(server: MlflowClient) -> Database:
    return Database(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state_dir()}/mlflow.db")


@pytest.mark.parametrize("fault", [lost_before, lost_after, twice])
def test_a_creation_whose_answer_is_lost_or_that_is_done_twice_leaves_one(
    fault: Call, server: MlflowClient, by_sql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once.time, "sleep", lambda _: None)
    for name in CREATIONS:
        call, left = getattr(MlflowClient, name), [fault]

        def spoilt(*args: Any, call: Call = call, left: list[Call] = left, **more: Any) -> Any:
            return left.pop()(call, *args, **more) if left else call(*args, **more)

        monkeypatch.setattr(MlflowClient, name, spoilt)
    run, says = trained()
    assert record(run, says).endswith("champion")
    (recorded,) = by_sql.runs(says["id"])
    assert recorded.models == [READY]
    assert len(recorded.versions) == 1
    assert recorded.outputs == 1
    assert by_sql.running() == 0
    assert server.get_model_version_by_alias(MODEL, "champion").run_id == recorded.run_id


def test_a_request_that_is_carried_out_late_leaves_a_twin_that_reaping_closes(
    server: MlflowClient, by_sql: Database, tmp_path: Path
) -> None:
    run = begun(state_dir() / "runs/one")
    claim(run)
    run_id, says = deliver(run, server), run.describe()
    experiment = server.get_run(run_id).info.experiment_id
    late = server.create_run(experiment, tags={"gliotrail.id": says["id"]})
    alone = server.create_run(experiment, tags={"gliotrail.id": "just made by another"})
    assert reap(Watch())[0] == [late.info.run_id]
    assert [recorded.run_id for recorded in by_sql.runs(says["id"])] == [run_id]
    twin = server.get_run(late.info.run_id)
    assert (twin.info.status, twin.info.lifecycle_stage) == ("KILLED", "deleted")
    assert twin.data.tags[TWIN_TAG] == run_id
    assert server.get_run(run_id).info.status == "RUNNING"
    assert server.get_run(alone.info.run_id).info.status == "RUNNING"
    release(run)


def test_twins_are_told_and_closed(server: MlflowClient, by_sql: Database) -> None:
    run, says = trained()
    record(run, says)
    (recorded,) = by_sql.runs(says["id"])
    one = server.get_model_version(MODEL, "1")
    server.create_model_version(MODEL, one.source, one.run_id, tags=one.tags)
    of = server.get_run(recorded.run_id)
    (model,) = of.outputs.model_outputs
    tags = server.get_logged_model(model.model_id).tags
    experiment = of.info.experiment_id
    late = server.create_logged_model(experiment, "model", recorded.run_id, tags=tags)
    run = finished(state_dir() / "runs/other")
    run_id = deliver(run, server)
    twin = server.create_run(
        server.get_run(run_id).info.experiment_id, tags={"gliotrail.id": run.describe()["id"]}
    )
    findings = list(server_checks.twins())
    assert {finding.state for finding in findings} == {"warning"}
    told = close_twins(server)
    assert told == [finding.text for finding in findings]
    assert told == [
        f"run {twin.info.run_id}, a twin of {run_id}",
        f"model {late.model_id}, a twin of {model.model_id}",
        f"versions 1, 2 of {MODEL}, of one run",
    ]
    assert close_twins(server) == []
    assert [finding.state for finding in server_checks.twins()] == ["ok"]
    assert len(by_sql.runs(run.describe()["id"])) == 1
    assert by_sql.runs(says["id"])[0].versions == [1]
    assert by_sql.runs(says["id"])[0].models == [READY]
    assert by_sql.champion() == recorded.run_id


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Through a proxy before MLflow's server, whose database is SQLite."""
    uri = f"sqlite:///{tmp_path}/server.db"
    in_state(tmp_path / "state", monkeypatch)
    service = MlflowServer(tmp_path / "mlflow.log", uri, tmp_path / "artifacts")
    service.wait()
    proxy = Proxy(service.uri, PATIENCE_S + 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE_S))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setattr(registry, "NO_MODEL_NEEDS", ("*.py",))  # a call each, all of one kind
    try:
        yield Calls(proxy, Database(uri), tmp_path / "state/runs")
    finally:
        proxy.close()
        service.kill()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_kind_of_call_lost_late_doubled_or_refused(calls: Calls) -> None:
    """One call a run: CHAOS_CALLS of them, at random, from CHAOS_FROM on; by default all."""
    source = random.Random(seed())
    cases = list(calls.cases(source))
    first = int(os.environ.get("CHAOS_FROM") or 0)
    most = int(os.environ.get("CHAOS_CALLS") or len(cases))
    spoil(calls, source.sample(cases, len(cases))[first : first + most])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_kinds_of_calls_of_a_run_lost_late_doubled_or_refused(calls: Calls) -> None:
    spoil(calls, list(calls.all_at_once(random.Random(seed()))))


def spoil(calls: Calls, cases: Sequence[Case]) -> None:
    """Each, and what it leaves."""
    assert not calls.faults, calls.faults
    started_s = time.monotonic()
    for n, case in enumerate(cases, 1):
        before = len(calls.faults)
        calls.run(case)
        for fault in calls.faults[before:]:
            print(fault, flush=True)
        if n % 10 == 0 or len(case.due) > 1:
            print(f"{n} of {len(cases)} runs, {len(calls.faults)} faults", flush=True)
    kinds = len({(case.work, kind) for case in cases for kind, _ in case.due})
    print(f"{kinds} kinds of calls, {sum(calls.outcomes.values())} spoilt, ", end="")
    print(f"{time.monotonic() - started_s:.0f} s: {dict(calls.outcomes)}")
    assert not calls.faults, "\n".join(calls.faults)
