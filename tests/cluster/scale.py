"""A training and a sweep on as many nodes as this machine has room for: `make scale-test`.

    python -m tests.cluster.scale [PART ..] [--nodes N]

Nodes are real raylets with one logical CPU and GPU each, workers are real processes that compute on
CPUs; network, patches and budget are tiny. Each part prints what it saw; what is wrong ends it.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil

from gliotrail.cluster.connection import cluster
from gliotrail.cluster.sweep import EXPERIMENT, sweep
from gliotrail.cluster.train import train
from gliotrail.files import csv_rows
from gliotrail.runs.journal import RunFolder
from gliotrail.segmentation.loop import World
from gliotrail.tracking.client import client, existing_run
from gliotrail.training.driver import run_training
from tests.support.crops import Crops, make_crops
from tests.support.raylets import raylets, workers_seen
from tests.support.told import told

MOST_NODES: Final = 16
NODE_BYTES: Final = 0.6e9
"""A raylet, its two agents and a worker with PyTorch, resident."""
STEPS, EPOCHS, TRIALS = 20, 2, 64
LOSS: Final = "train/soft_dice_loss"


def room() -> int:
    """How many nodes fit into half of the memory that is free."""
    return max(2, min(MOST_NODES, int(psutil.virtual_memory().available / 2 / NODE_BYTES)))


def of_training(nodes: int) -> dict[str, Any]:
    """Changes of params: a sample of each step for each node, in float64."""
    return {
        "train__batch_size": nodes,
        "train__epochs": EPOCHS,
        "train__epoch_voxels": STEPS // EPOCHS * nodes * 16**3,
        "train__precision": "float64",
    }


def training(nodes: int, crops: Crops, state: Path) -> None:
    """Train on all nodes, and by one worker; compare."""
    os.environ |= {"GLIOTRAIL_WORKERS": str(nodes), "GLIOTRAIL_GPUS": "1"}
    changes = of_training(nodes)
    began_s = time.time()
    params = crops.params(**changes)
    with workers_seen() as seen:
        train(params, crops.prepared, crops.patches, state / "sweep", state / "train")
    took_s = time.time() - began_s
    (path,) = state.glob("runs/*/run.json")
    run = RunFolder(path.parent)
    points = run.points()
    by_all = {p.step: p.value for p in points if p.key == LOSS}
    first_s = min(p.time_ms for p in points) / 1000 - began_s
    assert list(by_all) == list(range(1, STEPS + 1)), by_all
    assert run.history()[-1].made_on["workers"] == str(nodes)
    assert len(seen) == len(set(seen.values())) == nodes, seen
    server = client()
    of = told(server, existing_run(server, "gliotrail", run.describe()["id"]).info.run_id)
    assert of["status"] == "FINISHED"
    assert of["points"] == sorted((p.key, p.step, p.value, p.time_ms) for p in points)
    assert max(Counter((key, step) for key, step, *_ in of["points"]).values()) == 1

    alone = RunFolder(state / "alone")
    run_training(crops.training(**changes), alone, World())
    by_one = {p.step: p.value for p in alone.points() if p.key == LOSS}
    apart = max(abs(by_one[step] / by_all[step] - 1) for step in by_all)
    assert apart < 1e-6, apart
    print(
        f"training: {nodes} workers on {len(set(seen.values()))} nodes, {STEPS} steps;"
        f" {len(of['points'])} points in MLflow, {STEPS} of the loss, none doubled; losses"
        f" differ from one worker's by"
        f" {apart:.1e} at most; {took_s:.0f} s, {first_s:.0f} s to the first step",
        flush=True,
    )


def sweeping(nodes: int, crops: Crops, state: Path) -> None:
    """A sweep of many trials, each on a node of its own."""
    os.environ |= {"GLIOTRAIL_WORKERS": "", "GLIOTRAIL_GPUS": "1"}
    params = crops.params(
        sweep__space={"learning_rate": {"loguniform": [1e-4, 1e-2]}},
        sweep__algorithm="random",
        sweep__trials=TRIALS,
        sweep__epochs=1,
        sweep__epoch_voxels=4 * 4 * 16**3,
    )
    began_s = time.time()
    sweep(params, crops.prepared, crops.patches, state / "sweep")
    took_s = time.time() - began_s
    rows = csv_rows(state / "sweep/trials.csv")
    assert Counter(row["status"] for row in rows) == {"FINISHED": TRIALS}, rows
    server = client()
    experiment = server.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = server.search_runs([experiment.experiment_id], max_results=1000)
    trials = [run for run in runs if run.data.tags.get("gliotrail.kind") == "trial"]
    assert Counter(run.info.status for run in trials) == {"FINISHED": TRIALS}
    steps = Counter(
        tuple(m.step for m in server.get_metric_history(run.info.run_id, LOSS)) for run in trials
    )
    assert steps == {tuple(range(1, 5)): TRIALS}, steps
    print(
        f"sweep: {TRIALS} trials of 4 steps on {nodes} nodes, all FINISHED in MLflow, one point a"
        f" step; {took_s:.0f} s",
        flush=True,
    )


PARTS: Final[dict[str, Callable[[int, Crops, Path], None]]] = {
    "training": training,
    "sweep": sweeping,
}


def main() -> None:
    """Start the nodes once, and run the parts on them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--nodes", type=int, default=room())
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale") as name:
        folder = Path(name)
        for key in [key for key in os.environ if key.startswith(("GLIOTRAIL_", "MLFLOW_"))]:
            del os.environ[key]
        state = _made(folder / "state")
        os.environ["GLIOTRAIL_STATE"] = str(state)
        client()
        crops = make_crops(_made(folder / "crops"))
        free = psutil.virtual_memory().available
        began_s = time.time()
        with raylets(asked.nodes):
            print(f"{asked.nodes} nodes after {time.time() - began_s:.0f} s", flush=True)
            with cluster() as connected:
                connected()
                for part in asked.parts or PARTS:
                    PARTS[part](asked.nodes, crops, state)
                    used = free - psutil.virtual_memory().available
                    print(f"memory at the end of {part}: {used / 1e9:.1f} GB more", flush=True)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
