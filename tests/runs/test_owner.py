import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliotrail.errors import ParamsError, TrackingError
from gliotrail.runs import owner as owner_module
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.owner import (
    HEARTBEAT,
    Owner,
    Watch,
    beat,
    beat_of,
    claim,
    close_if,
    heartbeat_s,
    interval_of,
    is_alive,
    owner_of,
    release,
    this_process,
)
from tests.support.projects import ROOT
from tests.support.tracked_runs import begun, go_on

HOLD = """
import sys, time
from pathlib import Path
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.owner import claim
claim(RunFolder(Path(sys.argv[1])))
print("held", flush=True)
time.sleep(60)
"""

HIDDEN = """
import json, os, subprocess, sys
from gliotrail.runs.owner import Owner, is_alive, machine
machine()
subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
os.setuid(65534)
print([is_alive(Owner(**owner)) for owner in json.loads(sys.argv[1])])
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    yield (made := begun(tmp_path / "run"))
    release(made)  # this process goes on to other tests


@pytest.fixture
def holder(run: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run."""
    command = [sys.executable, "-c", HOLD, str(run.root)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process is on another machine than its owner files say."""
    monkeypatch.setattr(owner_module, "machine", lambda: "another boot pid:[1]")
    monkeypatch.setenv(HEARTBEAT, "0.1")


def test_a_process_lives_until_it_is_killed_even_before_it_is_waited_for(
    run: RunFolder, holder: subprocess.Popen[str]
) -> None:
    held_by = owner_of(run)
    assert held_by is not None
    assert (held_by.pid, is_alive(held_by)) == (holder.pid, True)
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert is_alive(held_by) is False
    holder.wait()
    assert is_alive(held_by) is False


def test_another_process_with_the_same_number_is_another() -> None:
    mine = this_process()
    assert is_alive(mine) is True
    assert is_alive(replace(mine, started=mine.started - 1)) is False
    assert is_alive(replace(mine, machine="another")) is None
    assert is_alive(replace(mine, machine="")) is None


@pytest.mark.needs_netns
@pytest.mark.needs_root
def test_another_users_process_that_proc_hides_is_not_taken_for_dead() -> None:
    """As another user, of whom /proc shows nothing: hidepid shows the others' as little."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        gone = replace(this_process(), pid=ended.pid)
    owners = json.dumps([asdict(this_process()), asdict(gone)])
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", HIDDEN, owners],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "[None, False]\n", done.stderr


def test_the_second_is_told_who_holds_the_run_and_takes_a_dead_ones(
    run: RunFolder, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(TrackingError, match=rf"held by process {holder.pid} on .*; wait until"):
        claim(run)
    release(run)  # not ours
    assert owner_of(run) is not None
    holder.kill()
    holder.wait()
    claim(run)
    claim(run)
    assert owner_of(run) == this_process()
    release(run)
    assert owner_of(run) is None


def test_a_holder_elsewhere_is_watched_before_its_run_is_taken(
    run: RunFolder, another_machine: None, holder: subprocess.Popen[str]
) -> None:
    beat(run)

    def wait(pause_s: float) -> None:
        time.sleep(pause_s)
        beat(run)

    with pytest.raises(TrackingError, match="held by process"):
        claim(run, wait)
    started = time.monotonic()
    claim(run)  # nobody beats any more
    assert time.monotonic() - started >= 0.3
    assert owner_of(run) == this_process()


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_dead_holder_is_waited_for_once_unless_no_heartbeat_could_come(
    has_ended: bool,
    run: RunFolder,
    another_machine: None,
    holder: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    beat(run)
    held_by, gone = owner_of(run), set[Owner]()
    if has_ended:  # its holder may go on with other runs
        run.end("FAILED", "out of patience")
    claim(run, gone=gone)
    assert gone == (set() if has_ended else {held_by})
    waiting = f"run was held by {held_by}: waiting up to 0.3 s for its heartbeat\n"
    assert capsys.readouterr().err == waiting


def test_a_run_is_closed_at_its_last_sign_of_life_unless_another_took_it(run: RunFolder) -> None:
    gone = Owner("here", "host", 1, 1)
    go_on(run, [1])
    claim(run)
    assert not close_if(run, gone, "gone")
    assert close_if(run, this_process(), "gone")
    ended = run.ended()
    assert ended is not None
    assert ended["status"] == "KILLED"
    assert ended["reason"] == f"gone: {this_process()}"
    last_s = (run.root / "attempts/0001.jsonl").stat().st_mtime
    assert ended["time_ms"] >= int(1000 * last_s) - 1
    assert owner_of(run) is None
    claim(run)
    assert not close_if(run, this_process(), "gone")  # it has ended


def test_no_two_beats_are_alike(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert beat_of(run) == ""
    assert [beat(run), beat(run)] == ["1 every 30 s", "2 every 30 s"]
    monkeypatch.setenv(HEARTBEAT, "0.25")
    assert beat(run) == beat_of(run) == "3 every 0.25 s"
    assert (interval_of("3 every 0.25 s"), interval_of("")) == (0.25, 30)


@pytest.mark.parametrize("text", ["0", "0.01", "3601", "-1", "soon", "nan", "1e9"])
def test_an_interval_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HEARTBEAT, text)
    with pytest.raises(ParamsError, match=HEARTBEAT):
        heartbeat_s()


@given(
    pauses=st.lists(st.floats(0, 1000), max_size=60),
    interval_s=st.sampled_from([1.0, 30.0]),
)
def test_a_heartbeat_stands_still_only_after_three_intervals_that_were_watched(
    pauses: list[float], interval_s: float
) -> None:
    now_s, watched_s = 0.0, 0.0
    watch, text = Watch(lambda: now_s), f"7 every {interval_s:g} s"
    assert not watch.is_still("run", text)
    for pause_s in pauses:
        now_s += pause_s
        watched_s += min(pause_s, interval_s)  # asleep or stopped, it watches nothing
        assert watch.is_still("run", text) == (watched_s >= 3 * interval_s)
    assert not watch.has_moved("run")
    assert not watch.is_still("run", f"8 every {interval_s:g} s")
    assert watch.has_moved("run")
    watch.forget()
    now_s += 1000
    assert not watch.is_still("run", f"8 every {interval_s:g} s")
