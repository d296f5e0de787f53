"""The services on this machine: secrets, and that exactly what was started is ended."""

import json
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest

from gliotrail.errors import ClusterError, ParamsError
from infra.local import others, postgres
from infra.local.__main__ import start_all
from infra.local.processes import Processes, Service
from infra.local.settings import load
from tests.support.projects import ROOT

# one that starts another in a session of its own, which outlives it
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").close()
time.sleep(600)
"""


def parent_of_another(folder):
    sign = folder / "started"
    return Service("parent", [sys.executable, "-c", PARENT, str(sign)], sign.is_file)


def marked(folder):
    mark = json.loads((folder / "running.json").read_text())["mark"]
    found = []
    for each in psutil.process_iter():
        try:
            found += [each] if mark in each.environ().values() else []
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed before"])
def test_stop_ends_all_that_was_started_and_nothing_else(killed, tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    service, processes = parent_of_another(tmp_path), Processes(tmp_path)
    processes.start(service)
    processes.wait(service)
    family = marked(tmp_path)
    assert len(family) == 2
    if killed:
        parent = psutil.Process(processes.owners()["parent"].pid)
        parent.kill()
        parent.wait()

    stopped = processes.stop([service])

    assert stopped == ([] if killed else ["parent"])
    assert not any(each.is_running() and each.status() != "zombie" for each in family)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_process_that_got_a_dead_ones_number_is_left_alone(tmp_path):
    stranger = subprocess.Popen(["sleep", "600"])
    service, processes = parent_of_another(tmp_path), Processes(tmp_path)
    processes.start(service)
    processes.wait(service)
    value = json.loads((tmp_path / "running.json").read_text())
    value["services"]["parent"]["pid"] = stranger.pid
    value["services"]["parent"]["started"] -= 100
    (tmp_path / "running.json").write_text(json.dumps(value))

    assert not processes.is_running("parent")
    assert processes.stop([service]) == []

    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_what_ends_at_its_start_twice_is_told_in_one_line_with_its_last_words(tmp_path):
    service = Service("short", ["sh", "-c", "echo no room; exit 3"], lambda: False)
    Processes(tmp_path).start(service)
    with pytest.raises(ClusterError, match=r"logs/short\.log: short ended .* got no room"):
        Processes(tmp_path).wait(service)
    assert Processes(tmp_path).log("short").read_text() == "no room\n" * 2


def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path):
    before = os.umask(0)
    try:
        settings = load(tmp_path / "services")
        others.seaweedfs(settings)
        others.mlflow(settings)
    finally:
        os.umask(before)
    assert load(tmp_path / "services") == settings
    assert len(set(settings.secrets.values())) == len(settings.secrets)
    assert len(set(settings.ports.values())) == len(settings.ports)
    assert load(tmp_path / "another").secrets != settings.secrets
    assert stat.S_IMODE(settings.folder.stat().st_mode) == 0o700
    told = [path for path in settings.folder.iterdir() if path.is_file()]
    holders = [p for p in told if any(s in p.read_text() for s in settings.secrets.values())]
    assert {p.name for p in holders} == {
        *("settings.json", "env", "ray-token", "s3.json", "mlflow-auth.ini"),
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}


def test_no_command_line_holds_a_secret(tmp_path):
    settings = load(tmp_path)
    for service in (others.seaweedfs(settings), others.mlflow(settings), others.ray_head(settings)):
        assert not [s for s in settings.secrets.values() if s in " ".join(service.command)]


def test_a_shell_that_sources_env_has_what_clients_need(tmp_path):
    settings = load(tmp_path)
    show = f"source {tmp_path}/env && exec env -0"
    done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    there = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert settings.client_env().items() <= there.items()
    token = Path(there["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert there["RAY_AUTH_MODE"] == "token"
    assert token == settings.secrets["ray"]


def test_services_listen_at_an_address_of_this_machine_only(tmp_path):
    with pytest.raises(ParamsError, match=r"--host: wanted an IP address of this machine, got"):
        load(tmp_path, "192.0.2.200")


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "prepare", lambda settings: None)
    settings = load(tmp_path)
    with (
        closing(socket.create_server(("127.0.0.1", settings.ports["mlflow"]))),
        pytest.raises(ClusterError, match=r"mlflow: wanted port \d+, got a port that is taken"),
    ):
        start_all(settings)
    assert Processes(tmp_path).owners() == {}


@pytest.mark.needs_postgres
def test_postgresql_runs_whoever_asks_and_wants_its_password(tmp_path):
    settings = load(tmp_path)
    postgres.prepare(settings)
    service, processes = postgres.service(settings), Processes(tmp_path)
    processes.start(service)
    try:
        processes.wait(service)
        postgres.create_databases(settings)
        uri = postgres.uri(settings, "mlflow").replace("+psycopg2", "")
        with closing(psycopg2.connect(uri)) as connection, connection.cursor() as cursor:
            cursor.execute("show listen_addresses")
            assert cursor.fetchone() == ("127.0.0.1",)
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(uri.replace(settings.secrets["postgres"], "guess"))
    finally:
        started = time.monotonic()
        assert processes.stop([service]) == ["postgres"]
        postgres.delete(settings)
    assert time.monotonic() - started < 20
    assert not postgres.home(settings).exists()


def test_without_services_commands_say_so_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "infra.local", "stop", "--state", str(tmp_path / "none")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": "platform"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'none'}: nothing was ever started here\n"
