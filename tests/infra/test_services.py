"""All services together, as their commands start, back up, restore, upgrade and stop them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from infra.local import others, postgres
from infra.local.processes import Processes
from infra.local.settings import load
from infra.local.state import running
from tests.support.documents import blocks
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

READ_OLD = """
import mlflow
client = mlflow.MlflowClient()
(run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
points = client.get_metric_history(run.info.run_id, "loss")
champion = client.get_model_version_by_alias("old-model", "champion")
print("READ", run.info.run_name, run.data.params["seed"], len(points), champion.version)
"""
MODEL = "import mlflow; mlflow.MlflowClient().create_registered_model('gliotrail-unet3d')\n"
OLD = ROOT / "tests/infra/mlflow-2.9"


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


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "services"
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


def test_an_old_mlflows_databases_are_upgraded_kept_beside_and_served(old):
    settings = load(old)
    postgres.prepare(settings)
    with running(settings, [postgres.service(settings)]):
        postgres.create_databases(settings)
        for name in postgres.DATABASES:
            path = str(OLD / f"{name}.sql")
            postgres.run(settings, "psql", "-v", "ON_ERROR_STOP=1", "-q", "-d", name, "-f", path)
    told = services("upgrade", "--state", old).stdout
    before = Path(told.partition(": ")[2].strip())
    assert (before / "PG_VERSION").is_file()
    assert Processes(old).owners() == {}
    where = f"http://{settings.at('mlflow')}"
    users = f"{where}/api/2.0/mlflow/users/get?username=reader"
    reader = ("reader", "of the old schema")
    with (
        running(settings, [postgres.service(settings)]),
        running(settings, [others.mlflow(settings)]),
    ):
        assert use(old, READ_OLD) == ["READ", "older", "7", "4", "1"]
        assert requests.get(users, auth=reader, timeout=60).status_code == 200
        # what remote-mlflow.md tells an admin to do
        page = (ROOT / "docs/how-to/remote-mlflow.md").read_text()
        (block,) = [each for each in blocks(page, "") if each.language == "python"]
        script = block.text.replace("https://mlflow.example.org:5443", where)
        use(old, f"{MODEL}{script}\nprint('USED')")
        me = ("me", "at least 12 letters")
        run = {"experiment_id": "1", "start_time": 1}
        made = f"{where}/api/2.0/mlflow/runs/create"
        assert requests.post(made, json=run, auth=me, timeout=60).status_code == 200
        other = run | {"experiment_id": "0"}
        assert requests.post(made, json=other, auth=me, timeout=60).status_code == 403
