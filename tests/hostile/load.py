"""One of many processes that hold runs and deliver them to one server, and how long each time took.

As a sweep's process does: a run after the other, and what the server refuses is told again.
"""

import json
import time
from pathlib import Path

from mlflow.exceptions import MlflowException

from gliotrail.runs.journal import RunFolder
from gliotrail.runs.writer import Writer
from gliotrail.tracking.client import client
from gliotrail.tracking.delivery import deliver
from tests.support.tracked_runs import begun

PROCESSES, RUNS, CHECKPOINTS, STEPS = 20, 10, 3, 20


def work(folder: Path, process: int) -> None:
    """Ten runs, all there before the first goes on; each is told of after each checkpoint.

    Writes down the seconds of each delivery, what was refused at first, and the processor time.
    """
    server, took_s, refused = client(), [], []

    def tell(run: RunFolder) -> None:
        started_s, pause_s = time.perf_counter(), 1.0
        while True:
            try:
                deliver(run, server)
                break
            except MlflowException as error:
                refused.append(str(error)[:300])
                time.sleep(pause_s)
                pause_s *= 2
        took_s.append(time.perf_counter() - started_s)

    runs = [begun(folder / f"{process}-{n}") for n in range(RUNS)]
    (folder / f"{process}.ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    used_s = time.process_time()
    for run in runs:
        tell(run)
    writers = [Writer(run) for run in runs]
    for checkpoint in range(CHECKPOINTS):
        for run, writer in zip(runs, writers, strict=True):
            first = 1 + checkpoint * STEPS
            for step in range(first, first + STEPS):
                value = process + step / 1000
                writer.write(step, {"train/soft_dice_loss": value, "val/dice_WT": -value})
            writer.checkpoint(first + STEPS - 1, b"")
            tell(run)
    for run, writer in zip(runs, writers, strict=True):
        writer.close()
        run.end("FINISHED", "trained to the end")
        tell(run)
    (folder / f"{process}.json").write_text(
        json.dumps([took_s, refused, time.process_time() - used_s])
    )
