import http.server
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gliotrail.cli.experiments import rows_of
from tests.cli.conftest import Ended
from tests.support.projects import ROOT, set_params

Gliotrail = Callable[..., Ended]


def test_the_pages_of_a_server_that_runs_are_named(
    gliotrail: Gliotrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        at = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hush@{at}")
        ended = gliotrail("ui")
    assert ended.code == 0
    assert f"{at} (a running server)" in ended.out
    assert "hush" not in ended.out


@pytest.mark.parametrize(
    "words",
    [("ui",), ("models",), ("runs", "sync"), ("trace", "a"), ("runs", "reap")],
    ids=" ".join,
)
def test_a_server_that_is_away_is_one_line_that_says_why(
    words: tuple[str, ...], gliotrail: Gliotrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ended = gliotrail(*words)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("error: http://...@127.0.0.1:9: ")
    assert "no answer" in ended.err
    assert len(ended.err) < 150
    assert "hush" not in ended.err


def test_an_address_of_no_server_is_one_line(
    gliotrail: Gliotrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://me:hush@x")
    wanted = "MLFLOW_TRACKING_URI: wanted http://, https:// or a database's address"
    for words in (("models",), ("ui",), ("runs", "sync")):
        assert gliotrail(*words).err == f"error: {wanted}, got 'htp://...@x'\n"


def test_measures_that_are_not_there_are_one_line(
    gliotrail: Gliotrail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = gliotrail("metrics")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "dvc repro" in ended.err


def test_what_the_machine_refuses_is_one_line(gliotrail: Gliotrail, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"")
    (tmp_path / "file").touch()
    ended = gliotrail("weights", "import", tmp_path / "a.h5", "-o", tmp_path / "file/a.safetensors")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "Traceback" not in ended.err


def test_a_file_that_holds_no_measures_is_one_line(gliotrail: Gliotrail, tmp_path: Path) -> None:
    for name, content in {
        "params.yaml": b"fetch: {}",
        "a.json": b"[]",
        "b.png": b"\x89PNG",
    }.items():
        (tmp_path / name).write_bytes(content)
        ended = gliotrail("metrics", tmp_path / name)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert "no measures" in ended.err


def test_a_port_that_is_taken_or_none_is_one_line_before_anything_is_printed(
    gliotrail: Gliotrail,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = gliotrail("ui", "--port", port)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert f"gliotrail ui --port {port + 1}" in ended.err
    for port in (0, 65536, -1):
        ended = gliotrail("ui", "--port", port)
        assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)


def test_a_changed_value_is_checked_with_the_nearest_key(
    gliotrail: Gliotrail, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "results/sweep").mkdir(parents=True)
    best = {"params": {"learning_rate": 3e-4, "patch_size": "32x32x32"}}
    (tmp_path / "results/sweep/best.json").write_text(json.dumps(best))
    monkeypatch.chdir(tmp_path)
    for change, told in {
        "train.learning_rat=1": "did you mean learning_rate?",
        "tran.learning_rate=1": "did you mean train?",
        "learning_rate=1": "wanted train.learning_rate, got learning_rate",
        "sweep.space.learning_rate.choice=[1e-4, abc]": "got 'abc'",
        "train.learning_rate": "wanted KEY=VALUE",
        "train.learning_rate=3e-4": "the sweep picked it",
        "train.seed=7": "train.seed is 7 already",
        "train.batch_size=many": "train.batch_size",
        "train.seed.a=1": "seed is no section",
        "train.seed=[": "not YAML",
    }.items():
        ended = gliotrail("try", "--dry-run", change)
        assert (ended.code, ended.err.count("\n"), told in ended.err) == (1, 1, True), ended.err
    assert gliotrail("try", "--dry-run", "train.learning_rate=1e-3", "train.seed=8").code == 0


def test_the_same_try_goes_on_after_it_was_stopped(
    gliotrail: Gliotrail, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    subprocess.run("git init -q && git add . && git commit -qm one", shell=True, check=True)
    again = ("try", "--dry-run", "train.seed=8")
    set_params(tmp_path / "params.yaml", {"train.seed": 8})  # as DVC leaves it
    assert gliotrail(*again).code == 0
    subprocess.run("git commit -qam two", shell=True, check=True)
    assert "train.seed is 8 already" in gliotrail(*again).err


def test_experiments_are_few_columns_the_best_first() -> None:
    def told(rev: str, name: str, rate: float, dice: float | None) -> dict[str, Any]:
        params = {"params.yaml": {"data": {"train": {"learning_rate": rate, "seed": 7}}}}
        measures = {"results/evaluate/measures/mean_regions.json": {"data": {"dice": dice}}}
        return {"rev": rev, "name": name, "data": {"params": params, "metrics": measures}}

    tried = [told("b" * 40, "worse", 1e-3, 0.4), told("c" * 40, "better", 1e-2, 0.6)]
    failed = {"rev": "d" * 40, "name": None, "data": None}
    commit = told("a" * 40, "main", 3e-4, 0.5)
    commit["experiments"] = [{"revs": [one]} for one in (*tried, failed)]
    rows = list(rows_of([told("workspace", "", 3e-4, 0.5), commit]))
    assert [row["name"] for row in rows] == ["main", "better", "worse", "d" * 7]
    assert rows[1]["changed"] == {"train.learning_rate": 1e-2}
    assert rows[1]["dice"]["mean_regions"] == 0.6


def test_tables_are_whole_where_they_are_piped_and_fit_80_columns_of_a_terminal() -> None:
    digest = "0123456789abcdef" * 4
    script = (
        "from gliotrail.cli.output import *;"
        f"t = table_of('a', 'b', left=2); t.add_row('{digest}', '{digest}'); print_table(t)"
    )
    words = [sys.executable, "-c", script]
    env = os.environ | {"COLUMNS": "80"}
    piped = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    assert [digest, digest] in [line.split() for line in piped.splitlines()]
    master, slave = pty.openpty()
    subprocess.run(words, env=env, stdout=slave, check=True)
    os.close(slave)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(master, 10_000).decode())
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    assert "…" not in shown
    rows = [line.split() for line in shown.splitlines()]
    assert "".join(row[0] for row in rows if len(row) == 2 and len(row[0]) > 1) == digest
