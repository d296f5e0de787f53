"""gliotrail.sbatch on a real Slurm of three containers: run, time limit, requeue, scancel.

`make cluster-test PART=slurm` runs it, on the images of `make cluster-images`.
"""

import sqlite3
import time

import pytest

from tests.support.projects import set_params
from tests.support.slurm import BATCH, slurm

pytestmark = [pytest.mark.long, pytest.mark.needs_images, pytest.mark.timeout(1200)]
STEPS = 4
TWO = ["--nodes=2", "--cpus-per-task=1", "--mem=2000"]


@pytest.fixture(scope="module")
def cluster(crops_project, tmp_path_factory):
    root = crops_project.root
    set_params(
        root / "params.yaml",
        {"train.epochs": 6, "train.patch_size": "16x16x16", "train.learning_rate": 0.001},
    )
    crops_project.run("dvc", "repro", "--quiet", "patch", timeout_s=400)
    with slurm(crops_project, tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def points(cluster):
    """Steps of each run's training loss in the tracking database."""
    with sqlite3.connect(cluster.project.root / ".gliotrail/mlflow.db") as database:
        rows = database.execute(
            "select run_uuid, step from metrics where key = 'train/soft_dice_loss' order by step"
        ).fetchall()
    return {run: [step for of, step in rows if of == run] for run, _ in rows}


def train(cluster, epochs, *options):
    set_params(cluster.project.root / "params.yaml", {"train.epochs": epochs})
    return cluster.submit(*options, BATCH, "python", "-m", "pipelines.train")


def test_a_training_runs_on_both_nodes_without_a_remote_or_a_server(cluster):
    job = train(cluster, 6, *TWO)
    assert cluster.ended(job, 400) == "COMPLETED", cluster.said(job)
    assert points(cluster)
    assert list(points(cluster).values()) == [list(range(1, 6 * STEPS + 1))]
    assert not (cluster.project.root / f".gliotrail/slurm/{job}").exists()


def test_before_the_limit_it_makes_a_checkpoint_queues_again_and_goes_on(cluster):
    before = set(points(cluster))
    # Slurm itself sends USR1, 60 to 90 s before the limit of 3 minutes: too early for 600 steps
    job = train(cluster, 150, *TWO, "--time=3", "--signal=B:USR1@60")
    cluster.until(job, "stopped by Ctrl-C", 300)
    assert cluster.ended(job, 900) == "COMPLETED", cluster.said(job)
    assert cluster.restarts(job) >= 1
    (run,) = set(points(cluster)) - before
    assert points(cluster)[run] == list(range(1, 150 * STEPS + 1))


def test_scancel_ends_it_and_it_is_not_queued_again(cluster):
    job = train(cluster, 400, *TWO)
    cluster.until(job, f"step {STEPS}/", 300)
    started_s = time.monotonic()
    cluster.run("scancel", job)
    assert cluster.ended(job, 90) == "CANCELLED"
    assert time.monotonic() - started_s < 60
    assert cluster.restarts(job) == 0


def test_a_job_ends_with_its_commands_code(cluster):
    job = cluster.submit("--nodes=1", BATCH, "bash", "-c", "exit 3")
    assert cluster.ended(job, 300) == "FAILED"
    assert "ExitCode=3:0" in cluster.run("scontrol", "show", "job", job)
