"""Stages as jobs of a cluster that shares nothing with the checkout; the real ones are `long`."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from gliotrail.cluster.content_store import put
from gliotrail.cluster.job_inputs import JobInputs, check_versions, sent, versions_here
from gliotrail.cluster.submit import _name, cancel, on_cluster, submit
from gliotrail.errors import ClusterError, ParamsError
from gliotrail.paths import JOB, state_dir
from gliotrail.plain_yaml import read_yaml
from gliotrail.runs.store import Store
from tests.support.projects import ROOT, Project, set_params
from tests.support.ray_head import RayHead

pytestmark = pytest.mark.starts_ray

SENT = JobInputs(
    "job-1",
    "train",
    [],
    {"data": "0"},
    ["out"],
    {"url": "s3://a", "endpointurl": "b"},
    {},
    {},
    None,
    {},
)


def test_a_stage_runs_here_without_a_cluster_and_in_the_job_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not on_cluster("train")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv(JOB, "a job")
    assert not on_cluster("train")


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_cluster_that_takes_no_jobs_is_one_line(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=rf"^RAY_ADDRESS={scheme}127.0.0.1:{port}: no Ray "):
        on_cluster("train")
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ClusterError, match="RAY_ADDRESS: wanted a cluster's address, got nothing"):
        submit("train")


def test_versions_that_differ_are_refused_with_both_named() -> None:
    here = versions_here()
    check_versions(here, here, "node-1")
    with pytest.raises(ClusterError) as told:
        check_versions(here, here | {"torch": "1.0", "dvc": "2"}, "node-1")
    assert str(told.value).startswith(
        "node-1: versions differ from those of the submitting machine:"
        f" wanted torch {here['torch']}, dvc {here['dvc']}, got torch 1.0, dvc 2; install"
    )


def test_a_password_is_not_sent_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:geheim@host:5000")
    monkeypatch.setattr("gliotrail.cluster.submit._client", lambda: None)
    monkeypatch.chdir(ROOT)
    with pytest.raises(ParamsError, match="a password would be sent along") as told:
        submit("train")
    assert "geheim" not in str(told.value)
    with pytest.raises(ParamsError, match="no such stage: wanted params"):
        submit("trian")


def test_a_job_knows_what_it_was_sent_and_keeps_its_runs_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sent() is None
    SENT.write(tmp_path)
    monkeypatch.setenv(JOB, "job-1")
    monkeypatch.setattr("gliotrail.__file__", str(tmp_path / "platform/gliotrail/__init__.py"))
    assert sent() == SENT
    assert SENT.common_store.config == {"url": "s3://a", "endpointurl": "b"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nearer")
    assert SENT.common_store.config == {"url": "s3://a"}
    monkeypatch.delenv("GLIOTRAIL_STATE")
    assert state_dir() == Path.home() / ".cache/gliotrail"


class Jobs:
    """What a cluster tells of its jobs, and which it was asked to stop; a real one: below."""

    def __init__(self, *names: str) -> None:
        self.names, self.stopped = names, list[str]()

    def list_jobs(self) -> list[JobDetails]:
        return [
            JobDetails(submission_id=name, type=JobType.SUBMISSION, status=JobStatus.RUNNING,
                       entrypoint="") for name in self.names
        ]  # fmt: skip

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)


def test_only_this_checkouts_job_is_cancelled_or_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {train: {deps: [data]}}")
    (tmp_path / "params.yaml").write_text("train: {init: scratch}")
    (tmp_path / "data").write_text("data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "http://host")
    own = f"{_name('train', [], {'data': put(Path('data'), Store({'url': 'store'}))})}-2"
    jobs = Jobs("gliotrail-train-0-1", own, "gliotrail-sweep-0-1", "gliotrail-train-1-3")
    monkeypatch.setattr("gliotrail.cluster.submit._client", lambda: jobs)
    cancel("train")
    assert jobs.stopped == [own]
    (tmp_path / "data").write_text("other data")
    with pytest.raises(ClusterError, match=r"^http://host: no job gliotrail-train-") as told:
        cancel("train")
    assert f"goes on: got gliotrail-train-0-1, {own}, gliotrail-train-1-3; `gliotr" in str(
        told.value
    )
    cancel("gliotrail-train-1-3")
    assert jobs.stopped == [own, "gliotrail-train-1-3"]
    with pytest.raises(ClusterError, match=r"^http://host: no job gliotrail-train-7-1 goes on$"):
        cancel("gliotrail-train-7-1")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with RayHead(tmp_path_factory.mktemp("head")).running() as started:
        yield started


@pytest.fixture(scope="module")
def ready(crops_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that `train` may run in, with a remote and an MLflow."""
    set_params(
        crops_project.root / "params.yaml",
        {"train.learning_rate": 3e-3, "train.patch_size": "16x16x16", "train.epochs": 3},
    )
    crops_project.run("dvc", "repro", "--quiet", "patch", timeout_s=280)
    best = crops_project.root / "results/sweep/best.json"
    best.parent.mkdir(parents=True)
    best.write_text("{}")
    store = str(tmp_path_factory.mktemp("store"))
    crops_project.run("dvc", "remote", "add", "--local", "--default", "store", store)
    make = "from gliotrail.tracking.client import client; client()"
    crops_project.run("python", "-c", make)
    return crops_project


def env_of(project: Project, head: RayHead) -> dict[str, str]:
    return {
        "RAY_ADDRESS": head.address,
        "MLFLOW_TRACKING_URI": f"sqlite:///{project.root}/.gliotrail/mlflow.db",
        "GLIOTRAIL_WORKERS": "1",
    }


def until(project: Project, head: RayHead, said: str, *command: str) -> str:
    """Ctrl-C as soon as a command has said something; all that it said."""
    process = subprocess.Popen(
        command, cwd=project.root, env=project.env | env_of(project, head), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if said in line:
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait() != 0
    return "".join(lines)


def runs_of(project: Project, head: RayHead) -> list[dict[str, str]]:
    """The tags of MLflow's runs, and how often each point is there at most."""
    script = """
import json
from collections import Counter
from gliotrail.tracking.client import client
server = client()
for run in server.search_runs([e.experiment_id for e in server.search_experiments()]):
    points = server.get_metric_history(run.info.run_id, "train/soft_dice_loss")
    print("RUN", json.dumps(run.data.tags | {"status": run.info.status,
          "steps": sorted(p.step for p in points)}))
"""
    told = project.run("python", "-c", script, **env_of(project, head)).stdout
    return [json.loads(line[4:]) for line in told.splitlines() if line.startswith("RUN ")]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_dvc_repro_trains_on_a_cluster_that_shares_nothing_with_the_checkout(
    ready: Project, head: RayHead
) -> None:
    env, repro = env_of(ready, head), ("dvc", "repro", "--single-item", "train")
    told = until(ready, head, "steps", *repro)
    assert "goes on; the same command finds it again" in told

    started = time.perf_counter()
    told = ready.run(*repro, timeout_s=600, **env).stdout
    print(f"dvc repro train, found again, took {time.perf_counter() - started:.1f} s")
    assert "train: found job gliotrail-train-" in told
    lock = read_yaml(ready.root / "dvc.lock")["stages"]["train"]["outs"]
    assert [out["path"] for out in lock] == ["results/train"]
    assert "didn't change, skipping" in ready.run(*repro, **env).stdout
    assert ready.run("dvc", "status", "--cloud", "train").stdout.count("new:") == 0

    (run,) = runs_of(ready, head)
    assert run["status"] == "FINISHED"
    assert run["steps"] == list(range(1, 13))
    commit = ready.run("git", "rev-parse", "HEAD").stdout.strip()
    assert run["mlflow.source.git.commit"] == commit
    assert not list((ready.root / ".gliotrail").glob("runs/*"))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_wrong_token_is_one_line(ready: Project, head: RayHead) -> None:
    env = {**env_of(ready, head), "RAY_AUTH_TOKEN": "0" * 64}
    told = ready.run("gliotrail", "submit", "train", check=False, **env)
    assert told.returncode == 1
    assert "Traceback" not in told.stdout
    assert "no Ray jobs: got AuthenticationError" in told.stdout.splitlines()[-1]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_cancelled_job_has_a_checkpoint_and_goes_on_from_it(
    ready: Project, head: RayHead
) -> None:
    env = env_of(ready, head)
    set_params(ready.root / "params.yaml", {"train.seed": 8, "train.epochs": 30})
    until(ready, head, "step 4/", "gliotrail", "submit", "train")
    set_params(ready.root / "params.yaml", {"train.seed": 9})
    told = ready.run("gliotrail", "submit", "train", "--cancel", check=False, **env).stdout
    assert "goes on: got gliotrail-train-" in told
    set_params(ready.root / "params.yaml", {"train.seed": 8})
    told = ready.run("gliotrail", "submit", "train", "--cancel", **env).stdout
    assert "was asked to stop" in told
    told = ready.run("gliotrail", "submit", "train", check=False, timeout_s=600, **env).stdout
    if "was cancelled" in told:  # it had not stopped yet
        told = ready.run("gliotrail", "submit", "train", timeout_s=600, **env).stdout
    assert "sent as job" in told
    (run,) = [run for run in runs_of(ready, head) if len(run["steps"]) > 12]
    assert run["status"] == "FINISHED"
    assert run["steps"] == list(range(1, 121))
