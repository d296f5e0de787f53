import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gliotrail.errors import TrainingError
from gliotrail.files import write_json
from gliotrail.paths import state_dir
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import read_notes
from gliotrail.runs.owner import (
    HEARTBEAT,
    beat,
    beat_of,
    claim,
    owner_of,
    release,
    this_process,
)
from gliotrail.runs.writer import Writer
from gliotrail.tracking import delivery, reaper
from gliotrail.tracking.client import find_run
from gliotrail.tracking.delivery import HEARTBEAT_TAG, deliver
from gliotrail.tracking.delivery_thread import DeliveryThread, tracked
from gliotrail.tracking.heartbeat import Heartbeat
from gliotrail.tracking.sync import sync_all
from tests.support.forked import Forked
from tests.support.told import told
from tests.support.tracked_runs import begun, go_on


def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is true."""
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.05)


def known(server: MlflowClient, run: RunFolder) -> dict[str, object]:
    found = find_run(server, "tests", run.describe()["id"])
    assert found is not None
    return told(server, found.info.run_id)


def steps(server: MlflowClient, run: RunFolder) -> list[int]:
    points = known(server, run)["points"]
    assert isinstance(points, list)
    return sorted({step for _, step, _, _ in points})


def test_what_is_final_is_delivered_while_the_run_goes_on(
    tmp_path: Path, server: MlflowClient
) -> None:
    run = begun(tmp_path / "run")
    courier = DeliveryThread([run], every_s=0.05)
    for step in (1, 2):
        go_on(run, [step])
        until((run.root / "delivered").exists)
        until(lambda step=step: steps(server, run)[-1:] == [step])
    run.end("FINISHED", "trained to the end")
    assert courier.close() is None
    assert known(server, run)["status"] == "FINISHED"


def test_a_sweep_is_told_before_its_trials_and_those_that_never_began_not_at_all(
    tmp_path: Path, server: MlflowClient
) -> None:
    parent = begun(tmp_path / "parent", kind="sweep")
    trial = begun(tmp_path / "trial", parent=parent.describe()["id"], kind="trial")
    with tracked(parent, [trial, RunFolder(tmp_path / "not begun")]):
        pass
    above = find_run(server, "tests", parent.describe()["id"])
    below = find_run(server, "tests", trial.describe()["id"])
    assert above is not None
    assert below is not None
    assert below.data.tags["mlflow.parentRunId"] == above.info.run_id


def test_after_a_reboot_all_runs_of_a_process_are_taken_after_one_wait(
    tmp_path: Path,
    server: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(HEARTBEAT, "0.1")
    runs = [begun(tmp_path / name) for name in ("parent", "one", "two")]
    before = replace(this_process(), machine="the boot before")
    for run in runs:
        beat(run)
        write_json(run.root / "owner.json", asdict(before))
    with tracked(runs[0], runs[1:]):
        assert {owner_of(run) for run in runs} == {this_process()}
    assert capsys.readouterr().err.count("for its heartbeat") == 1


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (TrainingError("loss", wanted="a number", got="nan"), "FAILED", "loss: wanted a number"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (ZeroDivisionError("division by zero"), "FAILED", "ZeroDivisionError('division by zero')"),
    ],
)
def test_a_block_that_fails_ends_its_run_saying_why(
    error: BaseException, status: str, reason: str, tmp_path: Path, server: MlflowClient
) -> None:
    run = begun(tmp_path / "run")
    with pytest.raises(type(error)), tracked(run):
        raise error
    of = known(server, run)
    tags, files = of["tags"], of["files"]
    assert isinstance(tags, dict)
    assert isinstance(files, list)
    assert of["status"] == status
    assert tags["gliotrail.ended"].startswith(reason)
    assert ("traceback.txt" in files) == (status == "FAILED")
    if status == "FAILED":
        kept = (run.root / "traceback.txt").read_text()
        assert "in test_a_block_that_fails_ends_its_run_saying_why" in kept
        assert kept.endswith(f"{type(error).__name__}: {error}\n")


def test_a_block_that_fails_before_its_run_began_leaves_no_run(
    tmp_path: Path, server: MlflowClient
) -> None:
    with pytest.raises(TrainingError), tracked(RunFolder(tmp_path / "run")):
        raise TrainingError("nothing to train on")
    assert not (tmp_path / "run/ended.json").exists()
    assert [e.name for e in server.search_experiments()] == ["Default"]


@pytest.mark.usefixtures("server")
def test_a_heartbeat_that_cannot_be_written_is_tried_again_and_holds_no_other_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HEARTBEAT, "0.1")
    runs = [begun(tmp_path / name) for name in ("refused", "other")]
    (runs[0].root / "beat").mkdir()
    for run in runs:
        claim(run)
    heart = Heartbeat(runs[0])
    try:
        until(lambda: beat_of(runs[1]))
        (runs[0].root / "beat").rmdir()
        until(lambda: beat_of(runs[0]))
    finally:
        heart.close(20)
        for run in runs:
            release(run)


def test_a_delivery_that_takes_long_holds_no_heartbeat_up(
    server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a large backlog to a slow server."""
    monkeypatch.setenv(HEARTBEAT, "0.2")
    run, ends, hangs = begun(state_dir() / "runs/one"), threading.Event(), threading.Event()
    claim(run)
    run_id = deliver(run, server)

    def hang(*_: object) -> None:
        hangs.set()
        ends.wait(60)

    monkeypatch.setattr(reaper, "reap", hang)
    heart = Heartbeat(run)
    try:
        assert hangs.wait(60)
        told, here = (server.get_run(run_id).data.tags.get(HEARTBEAT_TAG), beat_of(run))
        until(lambda: beat_of(run) != here)
        until(lambda: server.get_run(run_id).data.tags.get(HEARTBEAT_TAG) != told)
        assert not ends.is_set()
    finally:
        ends.set()
        heart.close(20)
        release(run)


def test_a_sweep_that_somebody_deleted_in_mlflow_is_above_all_its_trials_again(
    server: MlflowClient,
) -> None:
    sweep = begun(state_dir() / "runs/sweep", kind="sweep")
    above = sweep.describe()["id"]
    trials = [begun(state_dir() / f"runs/{n}", above, "trial") for n in range(3)]
    trials[0].end("FINISHED", "a test")
    courier = DeliveryThread([sweep, *trials], every_s=0.05)
    until(lambda: all(read_notes(run).get("noted") for run in (sweep, *trials)))
    first = read_notes(sweep)["run_id"]
    server.delete_run(first)
    go_on(trials[1], [1])
    until(lambda: read_notes(sweep)["run_id"] != first)
    assert courier.close() is None
    parents = {str(known(server, trial)["tags"]["mlflow.parentRunId"]) for trial in trials}
    assert parents == {read_notes(sweep)["run_id"]}

    server.delete_run(read_notes(sweep)["run_id"])
    assert sync_all()[1] == {}
    parents = {str(known(server, trial)["tags"]["mlflow.parentRunId"]) for trial in trials}
    assert parents == {read_notes(sweep)["run_id"]}


# servers that are not as they should be


def test_what_was_given_up_tells_no_other_server(
    tmp_path: Path, server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, answers = begun(tmp_path / "run"), threading.Event()
    tries, before = [], set(threading.enumerate())

    def hang(*_: object, **__: object) -> None:
        tries.append(1)
        answers.wait()
        raise ConnectionError

    monkeypatch.setattr(delivery, "deliver", hang)
    courier = DeliveryThread([run], every_s=0.05)
    until(lambda: tries)
    assert courier.close(0.1) == "the tracking server hangs"
    answers.set()
    until(lambda: set(threading.enumerate()) <= before)
    assert tries == [1]


@pytest.fixture
def refusing() -> str:
    """The address of a server that is down."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a server that takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def undelivered(run: RunFolder, tries: int = 3) -> None:
    """Prints the seconds of a loop with a checkpoint a try, those of its end, and the problem."""
    times = [time.monotonic()]
    courier = DeliveryThread([run], every_s=0.05)
    writer = Writer(run)
    for step in range(1, 20 * tries + 1):
        writer.write(step, {"train/soft_dice_loss": 1 / step})
        if step % 20 == 0:
            writer.checkpoint(step, b"state")
            time.sleep(0.2)  # for the courier to try
        times.append(time.monotonic())
    run.end("FINISHED", "trained to the end")
    problem = courier.close(timeout_s=0.5)
    print(times[-1] - times[0] - 0.2 * tries, time.monotonic() - times[-1], problem)


@pytest.mark.usefixtures("no_outputs")
@pytest.mark.parametrize("kind", ["refusing", "hanging"])
def test_a_dead_server_holds_nothing_up_and_nothing_is_lost(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, server: MlflowClient
) -> None:
    run = begun(state_dir() / "runs/one")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue(kind))
        process = Forked(tmp_path / "printed.txt", undelivered, run)
    assert process.wait(60) == 0
    (told_all,) = process.printed().splitlines()  # and nothing else
    in_loop_s, closing_s, problem = told_all.split(" ", 2)
    assert float(in_loop_s) < 2  # 60 steps and 3 checkpoints wait for nobody
    assert float(closing_s) < 2
    assert problem != "None"

    assert sync_all() == (1, {})
    assert steps(server, run) == list(range(1, 61))
    assert known(server, run)["status"] == "FINISHED"
