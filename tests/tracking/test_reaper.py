import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from gliotrail.files import write_json
from gliotrail.runs import owner as owner_module
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import runs_dir
from gliotrail.runs.owner import HEARTBEAT, Watch, this_process
from gliotrail.tracking.client import OWNER_TAG, STATUS_TAG, client, find_run
from gliotrail.tracking.delivery import HEARTBEAT_TAG, REAPED_TAG, deliver
from gliotrail.tracking.delivery_thread import tracked
from gliotrail.tracking.reaper import close_there, reap, reap_all
from tests.support.forked import Forked
from tests.support.told import told
from tests.support.tracked_runs import Start, begun, go_on
from tests.tracking.test_delivery_thread import until


def known(server: MlflowClient, run: RunFolder) -> dict[str, object] | None:
    """What MLflow knows of it, if anything."""
    try:
        found = find_run(server, "tests", run.describe()["id"]) if run.has_begun() else None
        return told(server, found.info.run_id) if found else None
    except Exception:  # noqa: BLE001 - the server is away
        return None


def status(server: MlflowClient, run: RunFolder) -> object:
    of = known(server, run)
    return of and of["status"]


def stop_between_two_writes(process: Forked, database: Path) -> None:
    """A process that is stopped while it writes keeps SQLite's lock, and MLflow from everybody."""
    while True:
        process.send_signal(signal.SIGSTOP)
        with closing(sqlite3.connect(database, timeout=0.2, isolation_level=None)) as free:
            try:
                free.execute("BEGIN EXCLUSIVE")
                return
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
        time.sleep(0.1)


def points_of(run: RunFolder) -> list[tuple[str, int, float, int]]:
    return sorted((p.key, p.step, p.value, p.time_ms) for p in run.points())


def test_a_run_is_closed_when_its_process_is_gone_never_before(
    server: MlflowClient, start: Start
) -> None:
    run = RunFolder(runs_dir() / "one")
    process = start(run.root, pause_s=0.2)
    until(lambda: status(server, run) == "RUNNING" and run.history(), 140)
    assert reap_all() == []
    assert status(server, run) == "RUNNING"
    process.kill()
    killed_ms = time.time() * 1000
    assert reap_all() == ["one"]
    of = known(server, run)
    assert of is not None
    assert of["status"] == "KILLED"
    assert of["points"] == points_of(run)
    tags, times = of["tags"], of["times"]
    assert isinstance(tags, dict)
    assert isinstance(times, tuple)
    assert tags["gliotrail.ended"].startswith(f"its process is gone: process {process.pid} on ")
    assert abs(times[1] - killed_ms) < 5000
    assert reap_all() == []

    again = start(run.root, pause_s=0.2)
    until(again.printed)
    assert again.printed().startswith(f"step {run.history()[-1].step}\n")
    until(lambda: status(server, run) == "RUNNING", 140)
    (run.root / "enough").touch()
    assert again.wait(140) == 0
    of = known(server, run)
    assert of is not None
    assert (of["status"], of["points"]) == ("FINISHED", points_of(run))


def test_each_start_closes_the_dead_and_delivers_what_others_left(server: MlflowClient) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, killed, mine = (begun(runs_dir() / name) for name in ("left", "killed", "mine"))
    go_on(left, [1, 2])
    left.end("FAILED", "out of patience")
    go_on(killed, [1])
    gone = replace(this_process(), pid=dead.pid)
    write_json(killed.root / "owner.json", asdict(gone))
    with tracked(mine):
        until(lambda: status(server, left) == "FAILED" and status(server, killed) == "KILLED")
        assert status(server, mine) == "RUNNING"
    for run in (left, killed):
        of = known(server, run)
        assert of is not None
        assert of["points"] == points_of(run)


def test_from_another_machine_a_run_is_closed_by_its_heartbeat_and_opens_again(
    tmp_path: Path, database: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is away for six intervals: twice as long as a beat is waited for."""
    place, away = tmp_path / "server", tmp_path / "away"
    place.mkdir()
    (place / "mlflow.db").write_bytes(database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    interval_s = 0.6
    monkeypatch.setenv(HEARTBEAT, str(interval_s))
    run = RunFolder(tmp_path / "there/runs/one")
    process = start(run.root, pause_s=0.2)
    server = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    until(lambda: HEARTBEAT_TAG in str(known(server, run)), 140)

    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path / "here"))
    monkeypatch.setattr(owner_module, "machine", lambda: "another boot pid:[1]")
    watch = Watch()

    def look(seconds: float) -> list[str]:
        closed, ends_s = [], time.monotonic() + seconds
        while time.monotonic() < ends_s:
            try:
                closed += reap(watch)[0]
            except MlflowException as error:  # away; or SQLite, that is locked for a moment
                assert not place.exists() or "locked" in str(error)
            time.sleep(interval_s / 3)
        return closed

    place.rename(away)
    assert look(6 * interval_s) == []
    away.rename(place)
    assert look(4 * interval_s) == []
    assert status(server, run) == "RUNNING"

    stop_between_two_writes(process, place / "mlflow.db")  # nothing tells it from dead
    closed: list[str] = []
    until(lambda: closed.extend(look(interval_s)) or closed, 60)
    of = known(server, run)
    assert of is not None
    assert (of["status"], len(closed)) == ("KILLED", 1)
    assert "its process is gone" in str(of["tags"])

    process.send_signal(signal.SIGCONT)
    until(lambda: status(server, run) == "RUNNING")
    (run.root / "enough").touch()
    assert process.wait(140) == 0
    of = known(server, run)
    assert of is not None
    assert of["status"] == "FINISHED"
    assert of["points"] == points_of(run)
    assert REAPED_TAG not in str(of["tags"])


def test_a_run_that_ends_while_it_is_closed_keeps_its_end(
    server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process says FINISHED in the moment between the reaper's last look and its closing."""
    run = begun(runs_dir() / "one")
    run_id = deliver(run, server)
    server.set_tag(run_id, OWNER_TAG, '{"machine": "m", "host": "h", "pid": 1, "started": 1}')
    real = MlflowClient.set_terminated

    def late(self: MlflowClient, run_id: str, *args: object, **more: object) -> None:
        self.set_tag(run_id, STATUS_TAG, "FINISHED")
        monkeypatch.setattr(MlflowClient, "set_terminated", real)
        real(self, run_id, "FINISHED")
        real(self, run_id, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "set_terminated", late)
    watch = Watch(iter(range(0, 10_000, 30)).__next__)  # type: ignore[arg-type]
    looks = [close_there(client(), watch, here=())[0] for _ in range(5)]
    assert looks == [[]] * 5
    assert (known(server, run) or {})["status"] == "FINISHED"


def test_runs_of_others_and_runs_that_ended_are_left_alone(server: MlflowClient) -> None:
    of_another_tool = server.create_run("0").info.run_id
    unknown = begun(runs_dir() / "unknown")  # no process ever said that it holds it
    deliver(unknown, server)
    strange = server.create_run("0", tags={OWNER_TAG: "no JSON"}).info.run_id
    assert reap_all() == []
    assert server.get_run(of_another_tool).info.status == "RUNNING"
    assert server.get_run(strange).info.status == "RUNNING"
    assert status(server, unknown) == "RUNNING"
