"""Real processes that are asked to stop: by signals, from another terminal, through MLflow."""

import signal

import pytest
from mlflow import MlflowClient

from gliotrail.errors import ParamsError, Stopped, TrackingError
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import runs_dir
from gliotrail.runs.owner import HEARTBEAT
from gliotrail.runs.stop import STOP, ask, asked_by, stop_if_asked, stop_s, stopped_by_signals
from gliotrail.tracking.client import OWNER_TAG, find_run
from gliotrail.tracking.delivery import STOP_TAG
from gliotrail.tracking.remote_stop import ask_by_name
from tests.support.forked import Forked
from tests.support.tracked_runs import Start, begun, finished
from tests.tracking.test_delivery_thread import until

KEPT = "what was trained is kept, and the same command goes on"


@pytest.fixture
def run(server: MlflowClient) -> RunFolder:
    return RunFolder(runs_dir() / "one")


def begin(start: Start, run: RunFolder, pause_s: float = 0.05) -> Forked:
    """Start a process and wait until it is at its steps."""
    process = start(run.root, pause_s)
    until(lambda: process.printed().startswith("step "), 60)
    return process


def why(run: RunFolder) -> tuple[str, str]:
    ended = run.ended() or {}
    return ended["status"], ended["reason"]


def test_ctrl_c_stops_with_a_checkpoint_and_the_same_command_goes_on(
    run: RunFolder, server: MlflowClient, start: Start
) -> None:
    process = begin(start, run)
    until(lambda: find_run(server, "tests", run.describe()["id"]), 60)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    reason = f"stopped by Ctrl-C; {KEPT}"
    assert process.printed().splitlines()[-1] == f"error: {reason}"
    assert why(run) == ("KILLED", reason)
    attempts = (run.root / "attempts/0001.jsonl").read_text().splitlines()
    assert run.history()[-1].step == len(attempts)  # nothing that was done is lost
    known = find_run(server, "tests", run.describe()["id"])
    assert known is not None
    assert known.info.status == "KILLED"

    last = run.history()[-1].step
    again = begin(start, run)
    assert again.printed().startswith(f"step {last}\n")
    until(lambda: run.history()[-1].step > last)
    assert run.ended() is None


def test_a_second_signal_stops_at_once(run: RunFolder, start: Start) -> None:
    process = begin(start, run, pause_s=60)
    process.send_signal(signal.SIGTERM)
    until(lambda: "at once after 240 s, or if asked once more" in process.printed())
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 143
    assert why(run) == ("KILLED", "stopped at once by SIGTERM")


def test_a_step_that_takes_too_long_is_not_waited_for(
    run: RunFolder, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STOP, "1")
    process = begin(start, run, pause_s=60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert why(run) == ("KILLED", "stopped at once by SIGTERM")


def test_a_patience_that_is_no_number_of_seconds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "0", "-1", "inf"):
        monkeypatch.setenv(STOP, text)
        with pytest.raises(ParamsError, match="GLIOTRAIL_STOP_S: wanted seconds from 1 to 86400"):
            stop_s()


def test_another_terminal_stops_it(run: RunFolder, start: Start) -> None:
    process = begin(start, run)
    assert ask_by_name(run.describe()["id"]).startswith(f"process {process.pid} on ")
    assert process.wait(20) == 143
    assert why(run)[1] == f"stopped by `gliotrail runs stop`; {KEPT}"


def test_another_machine_stops_it_through_mlflow(
    run: RunFolder, server: MlflowClient, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HEARTBEAT, "0.5")
    process, own_id = begin(start, run), run.describe()["id"]
    until(
        lambda: (is_known := find_run(server, "tests", own_id)) and OWNER_TAG in is_known.data.tags,
        60,
    )
    known = find_run(server, "tests", own_id)
    assert known is not None
    # MLflow's id: this disk knows none of that name
    assert ask_by_name(known.info.run_id).startswith(f"process {process.pid} on ")
    assert process.wait(20) == 143
    assert why(run)[1] == f"stopped by `gliotrail runs stop`; {KEPT}"
    known = find_run(server, "tests", own_id)
    assert known is not None
    assert (known.info.status, STOP_TAG in known.data.tags) == ("KILLED", False)


def test_a_run_that_nobody_works_on_is_not_asked(server: MlflowClient) -> None:
    done = finished(runs_dir() / "done")
    begun(runs_dir() / "left")
    for name, got in (("done", "FINISHED"), ("left", "a run that no process works on")):
        with pytest.raises(TrackingError, match=f"{name}: wanted a run that goes on, got {got}"):
            ask_by_name(name)
    with pytest.raises(TrackingError, match="strange: no such run"):
        ask_by_name("strange")
    assert asked_by(done) is None


def test_what_is_asked_to_stop_stops_where_it_looks(server: MlflowClient) -> None:
    run = begun(runs_dir() / "one")
    stop_if_asked(run)
    ask(run, "a test")
    with pytest.raises(Stopped, match=f"stopped by a test; {KEPT}") as stopped:
        stop_if_asked(run)
    assert stopped.value.code == 143


def test_where_no_run_is_held_a_signal_ends_the_block() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match="stopped by Ctrl-C") as stopped, stopped_by_signals():
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
