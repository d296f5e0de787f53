"""`gliotrail.track` in real processes: killed, stopped, failed, and in a project of DVC's."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from gliotrail.errors import ParamsError, TrackingError
from gliotrail.runs.journal import RunFolder
from gliotrail.tracking.track import track
from tests.support.database import Database, Recorded
from tests.support.projects import ROOT
from tests.support.services import MlflowServer
from tests.tracking.test_delivery_thread import until

LOOP = """
import json, sys, time
import gliotrail
from pathlib import Path
weight = 0.0
def save(folder):
    (folder / "weight.json").write_text(json.dumps(weight))
with gliotrail.track("study", inputs=json.loads(sys.argv[1]), checkpoint_every_s=0.1) as run:
    if run.checkpoint:
        weight = json.loads((run.checkpoint / "weight.json").read_text())
    print("at", run.last_step, flush=True)
    for step in run.steps(100):
        weight += step
        time.sleep(0.02)
        run.report(step, {"loss": 1 / step, "odd[name]": step}, checkpoint=save)
        {extra}
    run.attach("tables/weight.txt", str(weight))
    run.tag("kept", "yes")
    run.summary["test/weight"] = weight
heavy = {"torch", "ray", "mlflow", "numpy", "PIL", "nibabel"} & set(sys.modules)
assert not heavy, heavy
print("weight", weight, flush=True)
"""


class Loop:
    """Starts of a script in an empty folder, as a new user makes them."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "loop.py").write_text(script)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("GLIOTRAIL_")}
        self.env |= {"MLFLOW_TRACKING_URI": "", "PYTHONPATH": str(ROOT / "platform")}

    def start(self, inputs: Mapping[str, Any] | None = None) -> subprocess.Popen[str]:
        """Start it."""
        words = [sys.executable, "loop.py", json.dumps(inputs or {"params": {"rate": 0.1}})]
        return subprocess.Popen(
            words, cwd=self.folder, env=self.env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, inputs: Mapping[str, Any] | None = None) -> tuple[int, str]:
        """Until its end: exit code, and what it printed."""
        process = self.start(inputs)
        printed, _ = process.communicate(timeout=240)
        return process.returncode, printed

    def folders(self) -> list[RunFolder]:
        """Of its runs, in the order of their beginnings."""
        found = [RunFolder(path.parent) for path in self.folder.glob(".gliotrail/runs/*/run.json")]
        return sorted(found, key=lambda run: int(run.describe()["started_ms"]))

    def recorded(self) -> list[Recorded]:
        """What MLflow has of the newest run."""
        path = self.folder / ".gliotrail/mlflow.db"
        folders = self.folders()
        if not path.is_file() or not folders:
            return []
        return Database(f"sqlite:///{path}").runs(str(folders[-1].describe()["id"]))


def until_checkpoint(loop: Loop, of: int = 0) -> None:
    until(lambda: any(len(run.history()) > of for run in loop.folders()), 60)


def killed_delivery(pid: int) -> bool:
    """Whether the process that delivers for this one was there to be killed."""
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if "gliotrail.tracking.delivery_process" in child.cmdline():
                child.kill()
                return True
    return False


def status(loop: Loop) -> str:
    return ", ".join(run.status for run in loop.recorded())


def steps_by_key(recorded: Recorded) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for key, step, _, _ in recorded.points:
        found.setdefault(key, []).append(step)
    return {key: sorted(steps) for key, steps in found.items()}


def test_killed_it_is_closed_by_its_delivery_and_goes_on(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "empty", LOOP.replace("{extra}", ""))
    for kills in (1, 2):
        process = loop.start()
        until_checkpoint(loop, kills)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        until(lambda: status(loop) == "KILLED", 120)  # nobody called anything

    (killed,) = loop.recorded()
    reached = loop.folders()[0].history()[-1].step
    assert steps_by_key(killed)["loss"] == list(range(1, reached + 1))
    assert killed.tags["gliotrail.ended"].startswith("its process is gone: process ")

    process = loop.start()
    until(lambda: killed_delivery(process.pid), 60)  # which is started again
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert "not all of it is in MLflow" not in printed
    assert f"at {reached}\n" in printed
    assert "weight 5050.0\n" in printed
    (recorded,) = loop.recorded()
    assert recorded.status == "FINISHED"
    names = steps_by_key(recorded)
    assert names.pop("test/weight") == [0]
    assert sorted(names) == ["loss", "odd_name_.6b577668"]
    assert all(steps == list(range(1, 101)) for steps in names.values())
    assert recorded.params == {"rate": "0.1"}
    assert recorded.tags["kept"] == "yes"
    tables = list((loop.folder / ".gliotrail/artifacts").rglob("tables/weight.txt"))
    assert [path.read_text() for path in tables] == ["5050.0"]

    code, printed = loop.run()
    assert code == 0, printed
    assert "nothing to do" in printed
    assert loop.recorded() == [recorded]


def test_a_signal_stops_it_with_a_checkpoint(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "empty", LOOP.replace("{extra}", ""))
    process = loop.start()
    until_checkpoint(loop)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 143, printed
    assert "stopped by SIGTERM; what was trained is kept, and the same command goes on\n" in printed
    assert "Traceback" not in printed
    until(lambda: status(loop) == "KILLED", 120)
    (recorded,) = loop.recorded()
    (folder,) = loop.folders()
    noted = (folder.root / "attempts/0001.jsonl").read_text().count('"loss"')
    assert steps_by_key(recorded)["loss"] == list(range(1, noted + 1))  # no step is lost


def test_an_early_exit_is_no_success(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "empty", LOOP.replace("{extra}", "if step == 20: raise SystemExit(0)"))
    code, printed = loop.run()
    assert code == 0, printed
    (recorded,) = loop.recorded()
    assert (recorded.status, recorded.tags["gliotrail.ended"]) == ("FAILED", "SystemExit(0)")


def test_in_a_project_of_dvcs_it_takes_commit_digests_and_params_by_itself(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "project", LOOP.replace("{extra}", "").replace("100", "3"))
    files = {
        "dvc.yaml": "stages: {make: {cmd: ls, outs: [data/made]}}\n",
        "params.yaml": "train:\n  rate: 0.3\n",
        "dvc.lock": "schema: '2.0'\nstages:\n  make:\n    cmd: ls\n    outs:\n"
        "    - path: data/made\n      md5: 0123456789abcdef0123456789abcdef.dir\n",
        "data/made/a.txt": "one",
        ".gitignore": "data\n",
    }
    for name, content in files.items():
        (loop.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (loop.folder / name).write_text(content)
    for words in ("init -q", "add .", "commit -qm first"):
        subprocess.run(["git", *words.split()], cwd=loop.folder, check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=loop.folder, check=True, capture_output=True, text=True
    ).stdout.strip()

    code, printed = loop.run({"data": "data/made"})
    assert code == 0, printed
    (recorded,) = loop.recorded()
    assert recorded.params == {"data": "data/made", "train.rate": "0.3"}
    assert recorded.tags["mlflow.source.git.commit"] == commit
    assert recorded.tags["gliotrail.uncommitted_changes"] == "false"
    assert recorded.tags["dvc.data/made"] == "0123456789abcdef0123456789abcdef.dir"
    assert "gliotrail.code.files" not in recorded.tags  # its own folder is none of the code
    assert recorded.datasets == 1
    names = {path.name for path in (loop.folder / ".gliotrail/artifacts").rglob("*.*")}
    assert {"params.yaml", "dvc.lock"} <= names

    (loop.folder / "data/made/a.txt").write_text("two")  # another input: another run
    assert loop.run({"data": "data/made"})[0] == 0
    assert len(loop.folders()) == 2


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_inputs_that_are_not_plain_or_not_there_are_refused(here: Path) -> None:
    for inputs, said in (
        ({"a": {"b": [1, object()]}}, r"inputs: a\.b\[1\]: wanted plain values, .* got object"),
        ({"data": Path("nowhere")}, "inputs: data: wanted a file or a folder, got nowhere"),
        ({"params": {"rate": 1}, "rate": 2}, "inputs: wanted names of their own, got rate twice"),
    ):
        with pytest.raises(ParamsError, match=said), track("study", inputs=inputs):
            pytest.fail("it began")


def test_a_second_one_at_the_same_time_is_told_who_has_the_run(here: Path) -> None:
    loop = Loop(here, LOOP.replace("{extra}", "time.sleep(1)"))
    loop.env["GLIOTRAIL_STATE"] = str(here / "state")
    process = loop.start()
    try:
        until(lambda: list(here.glob("state/runs/*/owner.json")), 60)
        inputs = {"params": {"rate": 0.1}}
        held = pytest.raises(TrackingError, match=f"held by process {process.pid} ")
        with held, track("study", inputs=inputs):
            pytest.fail("it began")
    finally:
        process.kill()
        process.communicate()


def test_a_server_that_is_away_keeps_nobody_waiting(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "empty", LOOP.replace("{extra}", ""))
    loop.env["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    started = time.monotonic()
    code, printed = loop.run()
    assert code == 0, printed
    assert time.monotonic() - started < 40
    assert "not all of it is in MLflow yet" in printed
    assert "its delivery goes on for ten minutes" in printed
    loop.env["MLFLOW_TRACKING_URI"] = ""
    code, printed = loop.run()  # finished; now it is told
    assert code == 0, printed
    assert status(loop) == "FINISHED"
    assert steps_by_key(loop.recorded()[0])["loss"] == list(range(1, 101))


@pytest.mark.long
def test_what_was_late_is_delivered_when_the_server_is_back(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "empty", LOOP.replace("{extra}", ""))
    store = f"sqlite:///{tmp_path}/mlflow.db"
    server = MlflowServer(tmp_path / "mlflow.log", store, tmp_path / "artifacts")
    loop.env["MLFLOW_TRACKING_URI"] = server.uri
    code, printed = loop.run()
    assert code == 0, printed
    assert "not all of it is in MLflow yet" in printed
    (run,) = loop.folders()
    server.start()
    try:
        server.wait()
        recorded = Database(store).runs
        of_run = str(run.describe()["id"])
        until(lambda: [one.status for one in recorded(of_run)] == ["FINISHED"], 120)
        assert steps_by_key(recorded(of_run)[0])["loss"] == list(range(1, 101))
    finally:
        server.kill()
