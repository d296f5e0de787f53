"""A training on two machines that share no file, of which one is lost: `make cluster-test`."""

import json
import subprocess
import time

import pytest

from tests.support.projects import set_params

EPOCHS, STEPS_PER_EPOCH = 40, 4
POINTS = """
import json
from gliotrail.tracking.runs import client
server = client()
for run in server.search_runs([e.experiment_id for e in server.search_experiments()]):
    steps = [p.step for p in server.get_metric_history(run.info.run_id, "train/soft_dice_loss")]
    print("RUN", json.dumps({"status": run.info.status, "steps": sorted(steps)} | run.data.tags))
"""
GROUPS = """
import ray
from ray.util.placement_group import placement_group_table
ray.init(logging_level="ERROR")
print("LEFT", [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"])
"""


@pytest.fixture(scope="module")
def ready(crops_project):
    """A project that `train` may run in, and whose data the cluster has not."""
    set_params(
        crops_project.root / "params.yaml",
        {"train.learning_rate": 3e-3, "train.patch_size": "16x16x16", "train.epochs": EPOCHS},
    )
    crops_project.run("dvc", "repro", "--quiet", "patch", timeout_s=280)
    best = crops_project.root / "results/sweep/best.json"
    best.parent.mkdir(parents=True)
    best.write_text("{}")
    crops_project.run("dvc", "remote", "add", "--local", "--default", "s3", "s3://gliotrail/dvc")
    return crops_project


@pytest.mark.long
@pytest.mark.needs_netns
@pytest.mark.needs_postgres
@pytest.mark.timeout(1500)
def test_a_training_outlives_the_loss_of_a_machine(ready, two_nodes):
    env = {**two_nodes.env, "GLIOTRAIL_WORKERS": "1:2"}
    process = subprocess.Popen(
        ["gliotrail", "submit", "train"], cwd=ready.root, env=ready.env | env, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, killed_s = [], None
    for line in process.stdout:
        said.append(line)
        print(line, end="", flush=True)
        if killed_s is None and f"step {2 * STEPS_PER_EPOCH}/" in line:
            data = two_nodes.other.file("/tmp/state/cache")
            fetched = [path.name for path in data.iterdir() if path.name.endswith(".dir")]
            killed_s = time.monotonic()
            two_nodes.other.kill()
    assert process.wait() == 0, "".join(said)[-3000:]
    print(f"it ended {time.monotonic() - killed_s:.0f} s after the machine was lost")
    assert len(fetched) == 3  # prepared, patches, heads

    told = ready.run("python", "-c", POINTS, **env).stdout
    (run,) = [json.loads(line[4:]) for line in told.splitlines() if line.startswith("RUN ")]
    assert run["status"] == "FINISHED"
    assert run["steps"] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert "workers 2, from step" in run["resume.changed"]
    left = ["ray", "job", "submit", "--", "python", "-c", f"'{GROUPS}'"]
    assert "LEFT []" in ready.run(*left, **env).stdout
