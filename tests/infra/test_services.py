"""All services together, as their commands start, back up, restore, upgrade and stop them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.local import others, postgres
from infra.local.processes import Processes
from infra.local.settings import load
from infra.local.state import running
from tests.support.projects import ROOT

pytestmark = [pytest.mark.long, pytest.mark.needs_postgres, pytest.mark.timeout(900)]

USE = """
import os, mlflow, ray
mlflow.set_experiment("services")
with mlflow.start_run() as run:
    mlflow.log_metric("a", 1)
    mlflow.log_text("kept", "a.txt")
ray.init(address=os.environ["RAY_ADDRESS"], logging_level="ERROR")
there = ray.get(ray.remote(lambda: "AWS_ACCESS_KEY_ID" in os.environ).remote())
print("USED", run.info.run_id, there)
"""
READ = """
import sys, mlflow
run = mlflow.get_run(sys.argv[1])
print("READ", run.data.metrics["a"], mlflow.artifacts.load_text(run.info.artifact_uri + "/a.txt"))
"""


def services(*words, check=True):
    command = [sys.executable, "-m", "infra.local", *map(str, words)]
    env = os.environ | {"PYTHONPATH": "platform"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def use(state, script, *words):
    """Run Python in a shell that has sourced the services' env; its last words."""
    show = f'source {state}/env && exec "$@"'
    command = ["bash", "-c", show, "bash", sys.executable, "-c", script, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(line.split() for line in done.stdout.splitlines() if line[:4] in {"USED", "READ"})


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state") / "services"
    yield folder
    services("remove", "--yes", "--state", folder)


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    folder = tmp_path_factory.mktemp("another") / "services"
    yield folder
    services("remove", "--yes", "--state", folder)


def family(state):
    started = json.loads((state / "running.json").read_text())["services"].values()
    tops = [psutil.Process(each["pid"]) for each in started]
    return {each for top in tops for each in (top, *top.children(recursive=True))}


def test_services_start_on_loopback_are_used_backed_up_restored_and_stopped(state, another):
    services("start", "--state", state)
    told = json.loads(services("status", "--json", "--state", state).stdout)
    assert {each["state"] for each in told} == {"answers"}

    processes = family(state)
    listening = {
        each.laddr.ip
        for each in psutil.net_connections("inet")
        if each.status == psutil.CONN_LISTEN and each.pid in {p.pid for p in processes}
    }
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}

    _, run, keys = use(state, USE)
    assert keys == "True"
    file = state.parent / "backup.tar"
    services("backup", file, "--state", state)
    assert file.stat().st_mode & 0o777 == 0o600

    settings = load(state)
    written = list((state / "logs").iterdir())
    written += [p for p in others.ray_session(settings).rglob("*.log") if p.is_file()]
    secret = [s for name, s in settings.secrets.items() if name != "id"]
    assert len(written) > 4
    for path in written:
        assert not [s for s in secret if s in path.read_text(errors="replace")], path

    services("stop", "--state", state)
    assert not any(each.is_running() for each in processes)
    refused = services("restore", file, "--state", state, check=False)
    assert "there is state already" in refused.stderr

    services("restore", file, "--state", another)
    services("start", "--state", another)
    assert use(another, READ, run) == ["READ", "1.0", "kept"]  # by the new secrets
    services("stop", "--state", another)


def test_an_older_schema_is_upgraded_and_kept_beside(state):
    settings = load(state)
    database = postgres.service(settings)
    with running(settings, [database]):
        postgres.run(settings, "psql", "-d", "mlflow", "-c", "select count(*) from runs")
        older = subprocess.run(
            [sys.executable, "-c", OLDER, postgres.uri(settings, "mlflow")],
            capture_output=True, text=True,
        )  # fmt: skip
        assert older.returncode == 0, older.stderr[-2000:]

    told = services("upgrade", "--state", state).stdout

    before = Path(told.partition(": ")[2].strip())
    assert (before / "PG_VERSION").is_file()
    with running(settings, [database]):
        same = f"select version_num = '{older.stdout.split()[0]}' from alembic_version"
        shown = state / "same"
        postgres.run(settings, "psql", "-d", "mlflow", "-Atc", same, "-o", str(shown))
        assert shown.read_text().strip() == "t"
    assert Processes(state).owners() == {}


OLDER = """
import sys
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
config = _get_alembic_config(sys.argv[1].replace("%", "%%"))
head = ScriptDirectory.from_config(config).get_current_head()
command.downgrade(config, "-1")
print(head)
"""
