"""After SIGTERM a process that Ray has touched has time; without its Ray it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.environment import in_state
from tests.support.projects import ROOT
from tests.tracking.test_delivery_thread import until

HOLD = """
import sys, time
from pathlib import Path
from gliotrail.cluster.connection import cluster
from gliotrail.errors import one_line_errors
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.stop import asked_by
from gliotrail.tracking.delivery_thread import tracked
run = RunFolder(Path(sys.argv[1]))
with one_line_errors(), tracked(run), cluster() as connected:
    connected()
    run.begin({"id": "1", "name": "one", "experiment": "tests", "started_ms": 0})
    print("connected", flush=True)
    while not asked_by(run):
        time.sleep(0.1)
    time.sleep(5)  # longer than Ray's own handler would give a checkpoint
    print("outlived", flush=True)
    time.sleep(600)
"""


@pytest.mark.timeout(600)
def test_sigterm_leaves_time_for_a_checkpoint_and_without_ray_all_ends_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(tmp_path / "state", monkeypatch)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    root, log = tmp_path / "state/runs/one", tmp_path / "log"
    with log.open("w") as output:
        started = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(root)], cwd=ROOT, stdout=output, stderr=output
        )
    process = psutil.Process(started.pid)
    try:
        until(lambda: "connected" in log.read_text(), 300)
        process.send_signal(signal.SIGTERM)
        until(lambda: "outlived" in log.read_text() or started.poll() is not None, 60)
        assert started.poll() is None, log.read_text()

        raylet = next(each for each in process.children(recursive=True) if each.name() == "raylet")
        raylet.kill()
        killed_s = time.monotonic()
        assert started.wait(90) == 1
        assert time.monotonic() - killed_s < 60
    finally:
        for each in process.children(recursive=True) if process.is_running() else ():
            each.kill()
        started.kill()
    told = "error: Ray is gone: got its raylet ended with -9; the same command goes on"
    assert told in log.read_text().splitlines()
    assert '"FAILED"' in (root / "ended.json").read_text()
