"""infra/compose as containers: used by TLS, a worker and the head killed, backed up, destroyed,
restored.

`make cluster-test PART=containers` runs it, on the images of `make cluster-images`.
"""

import json
import shutil
import subprocess
import time
from functools import partial

import pytest
import requests

from infra.local.settings import is_free
from tests.support.containers import Compose, podman_env
from tests.support.projects import ROOT, set_params

pytestmark = [pytest.mark.long, pytest.mark.needs_images, pytest.mark.timeout(1500)]
EPOCHS, STEPS = 12, 4
OLD = ROOT / "tests/infra/mlflow-2.9"
RUNS = """
import json
from gliotrail.tracking.client import client
server = client()
for run in server.search_runs([e.experiment_id for e in server.search_experiments()]):
    points = server.get_metric_history(run.info.run_id, "train/soft_dice_loss")
    files = [f.path for f in server.list_artifacts(run.info.run_id)]
    print("RUN", json.dumps([run.info.status, sorted(p.step for p in points), sorted(files)]))
"""


@pytest.fixture(scope="module")
def compose(tmp_path_factory):
    taken = [port for port in (5000, 5443, 8265, 8266, 8333, 8443) if not is_free(port)]
    assert not taken, f"infra/compose wants ports that are taken: {taken}"
    folder = tmp_path_factory.mktemp("compose") / "compose"
    shutil.copytree(ROOT / "infra/compose", folder, ignore=shutil.ignore_patterns(".env", "tls"))
    (folder / "client.env").unlink(missing_ok=True)
    subprocess.run(["./secrets.sh", "127.0.0.1"], cwd=folder, check=True, capture_output=True)
    with (folder / ".env").open("a") as env:
        env.write("WORKER_CPUS=1\n")
    services = Compose(folder, podman_env(folder.parent), f"gt{folder.parent.name[-8:]}".lower())
    try:
        services.up()
        yield services
    finally:
        services.down()


@pytest.fixture(scope="module")
def project(crops_project, compose):
    fixed = {"train.epochs": EPOCHS, "train.patch_size": "16x16x16", "train.learning_rate": 0.001}
    set_params(crops_project.root / "params.yaml", fixed)
    crops_project.run("dvc", "repro", "--quiet", "patch", timeout_s=400)
    crops_project.run("dvc", "remote", "add", "--local", "--default", "s3", "s3://gliotrail/dvc")
    return crops_project


def runs(project, compose):
    told = project.run("python", "-c", RUNS, **compose.client_env()).stdout
    return [json.loads(line[4:]) for line in told.splitlines() if line.startswith("RUN ")]


def train(project, compose, at_step, kill):
    """`gliotrail submit train`, with `kill` called at a step: its code and what it said."""
    process = subprocess.Popen(
        ["gliotrail", "submit", "train"], cwd=project.root, text=True,
        env=project.env | compose.client_env() | {"GLIOTRAIL_WORKERS": "1:2"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        print(line, end="", flush=True)
        if kill and f"step {at_step}/" in line:
            kill()
            kill = None
    return process.wait(), "".join(said)


def test_doctor_finds_all_well_with_the_clients_environment(project, compose):
    told = project.run("gliotrail", "doctor", check=False, **compose.client_env()).stdout
    assert "by password, mlflow" in told, told
    assert "3 alive, 0 dead: 2 CPUs" in told  # the head has none
    assert "s3://gliotrail/dvc takes and gives" in told


def test_a_stranger_is_refused_and_the_user_of_workers_is_no_admin(compose):
    env = compose.client_env()
    users = "/api/2.0/mlflow/users"
    gliotrail = ("gliotrail", env["MLFLOW_TRACKING_PASSWORD"])
    ask = partial(requests.request, timeout=60, verify=env["REQUESTS_CA_BUNDLE"])
    new = {"username": "another", "password": "0123456789ab"}
    for ray, mlflow in (
        ("http://127.0.0.1:8265", "http://127.0.0.1:5000"),
        (env["RAY_ADDRESS"], env["MLFLOW_TRACKING_URI"]),
    ):
        assert ask("GET", f"{ray}/api/version").status_code == 401
        assert ask("GET", f"{mlflow}{users}/get?username=gliotrail").status_code == 401
        me = ask("GET", f"{mlflow}{users}/get?username=gliotrail", auth=gliotrail)
        assert me.json()["user"]["is_admin"] is False
        made = ask("POST", f"{mlflow}{users}/create", json=new, auth=gliotrail)
        assert made.status_code == 403
    with pytest.raises(requests.exceptions.SSLError):  # who has not tls/ca.pem
        requests.get(env["RAY_ADDRESS"], timeout=60)


def test_a_training_outlives_a_worker_and_the_head_and_a_backup_brings_it_back(project, compose):
    def kill(service):
        compose.run("podman", "kill", compose.container(service, 1))

    code, said = train(project, compose, 2 * STEPS, lambda: kill("worker"))
    assert code == 0, said[-3000:]
    ((status, steps, _),) = runs(project, compose)
    assert (status, steps) == ("FINISHED", list(range(1, EPOCHS * STEPS + 1)))

    # S3's container made anew has another address
    compose.run("podman", "rm", "-f", "-t", "2", compose.container("s3"))
    compose.start("s3")
    set_params(project.root / "params.yaml", {"train.epochs": EPOCHS + 2})

    def kill_head():
        kill("ray")
        compose.run("podman", "start", compose.container("ray"))

    code, said = train(project, compose, 2 * STEPS, kill_head)
    assert code == 1
    assert "the cluster's head answers, but has no such job" in said
    compose.start("ray", "worker")
    time.sleep(20)  # the workers look for the new head
    code, said = train(project, compose, 0, None)
    assert code == 0, said[-3000:]
    after = runs(project, compose)
    assert sorted(len(steps) for _, steps, _ in after) == [EPOCHS * STEPS, (EPOCHS + 2) * STEPS]

    backup = compose.folder.parent / "backup.tar"
    compose.run("./backup.sh", str(backup))
    assert backup.stat().st_mode & 0o777 == 0o600
    compose.down()
    compose.run("./restore.sh", str(backup))
    compose.start("s3-door")
    compose.once("schema")
    compose.start("mlflow", "tls")
    assert sorted(runs(project, compose)) == sorted(after)
    assert "holds something already" in compose.run(
        "bash", "-c", f"./restore.sh {backup} 2>&1; true"
    )


def test_an_old_mlflows_databases_are_upgraded_before_the_server_starts(compose):
    compose.down()
    compose.start("postgres", "s3", "s3-door")
    for name in ("mlflow", "mlflow_auth"):
        compose.run("bash", "-c", f"{compose.command} exec -T postgres psql -q -v ON_ERROR_STOP=1 "
                    f"-U mlflow -d {name} <{OLD / name}.sql")  # fmt: skip
    compose.once("buckets")
    compose.once("schema")
    compose.start("mlflow")
    asked = requests.post(
        "http://127.0.0.1:5000/api/2.0/mlflow/runs/search", json={"experiment_ids": ["0", "1"]},
        auth=("reader", "of the old schema"), timeout=60,
    )  # fmt: skip
    assert [run["info"]["run_name"] for run in asked.json()["runs"]] == ["older"]
