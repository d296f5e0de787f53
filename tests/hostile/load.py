"""200 runs at the same time, from 20 processes, to one MLflow server on PostgreSQL."""

import json
import os
import time
from pathlib import Path
from threading import Thread

from gliotrail.tracking.delivery import log_points
from gliotrail.tracking.journal import Point
from gliotrail.tracking.runs import client, experiment_id

PROCESSES, RUNS, WRITES, POINTS = 20, 10, 10, 20
EXPERIMENT = "load"


def points_of(process: int, run: int, write: int) -> list[Point]:
    """What one write tells: a batch of steps of two curves."""
    first = write * POINTS
    return [
        Point(key, process + run / 100 + step / 1e6, step, 1_700_000_000_000 + step)
        for step in range(first, first + POINTS)
        for key in ("train/soft_dice_loss", "val/dice_mean_regions")
    ]


def write_runs(folder: Path, process: int) -> None:
    """One process: ten runs, each of a thread of its own. Writes down how long each write took."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "300"
    server = client()
    experiment = experiment_id(server, EXPERIMENT)
    while not (folder / "go").exists():
        time.sleep(0.05)
    took_s: list[float] = []

    def write(run: int) -> None:
        started = time.perf_counter()
        run_id = server.create_run(experiment, tags={"who": f"{process} {run}"}).info.run_id
        took_s.append(time.perf_counter() - started)
        for number in range(WRITES):
            started = time.perf_counter()
            log_points(server, run_id, points_of(process, run, number))
            took_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        server.set_terminated(run_id, "FINISHED")
        took_s.append(time.perf_counter() - started)

    threads = [Thread(target=write, args=(run,)) for run in range(RUNS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    partial = folder / f"{process}.partial"
    partial.write_text(json.dumps(took_s))
    partial.rename(folder / f"{process}.json")
