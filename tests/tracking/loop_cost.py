"""What tracking takes of a training's loop of 10 steps a second, by the state of the server.

    python -m tests.tracking.loop_cost [STEPS]

A checkpoint of the size of the 833,507-parameter network's comes every 60 seconds, as in training.
"""

import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import Origin, describe
from gliotrail.runs.writer import Writer
from gliotrail.tracking.delivery_thread import DeliveryThread

STATE_BYTES = 4 * 4 * 833_507  # weights, their average, and Adam's two moments
STEP_S = 0.1
SERVERS = ("up", "refusing", "hanging")


@dataclass
class Cost:
    """Of one loop. Its calls: of points, and of checkpoints."""

    share: float
    longest_points_s: float
    longest_checkpoint_s: float


def loop(run: RunFolder, steps: int, checkpoint_every: int = 600) -> Cost:
    """A loop that does nothing but wait and track."""
    writer, state = Writer(run), os.urandom(STATE_BYTES)
    points, checkpoints = [], []
    started = time.perf_counter()
    for step in range(1, steps + 1):
        time.sleep(max(0.0, started + step * STEP_S - time.perf_counter()))
        before = time.perf_counter()
        writer.write(step, {"train/soft_dice_loss": 1 / step, "train/learning_rate": 1e-3})
        points.append(time.perf_counter() - before)
        if step % checkpoint_every == 0 or step == steps:
            before = time.perf_counter()
            writer.begin_checkpoint(step, state)
            checkpoints.append(time.perf_counter() - before)
    loop_s = time.perf_counter() - started
    writer.close()
    return Cost((sum(points) + sum(checkpoints)) / loop_s, max(points), max(checkpoints))


@contextmanager
def address(server: str, folder: Path) -> Iterator[str]:
    """Of a server in that state."""
    if server == "up":
        yield f"sqlite:///{folder}/mlflow.db"
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if server == "refusing":
            listening.close()
        yield f"http://127.0.0.1:{port}"


def measure(server: str, steps: int) -> Cost:
    """One loop, with a courier beside it."""
    with tempfile.TemporaryDirectory() as folder, address(server, Path(folder)) as uri:
        os.environ |= {"MLFLOW_TRACKING_URI": uri, "GLIOTRAIL_STATE": folder}
        run = RunFolder(Path(folder) / "runs/one")
        run.begin(describe(Origin({}, {}), experiment="cost", kind="train", name="cost",
                           params={}, inputs=server, data=[]))  # fmt: skip
        courier = DeliveryThread([run])
        try:
            return loop(run, steps)
        finally:
            courier.close(1)


def main(steps: int) -> None:
    """Three loops each; the medians."""
    print(f"{steps} steps, 10 a second: median of 3")
    for server in SERVERS:
        costs = [measure(server, steps) for _ in range(3)]
        share = statistics.median(cost.share for cost in costs)
        points_ms, checkpoint_ms = (
            1000 * statistics.median(getattr(cost, name) for cost in costs)
            for name in ("longest_points_s", "longest_checkpoint_s")
        )
        longest = f"longest call {points_ms:.1f} ms of points, {checkpoint_ms:.1f} of a checkpoint"
        print(f"server {server:10}{share:8.3%} of the loop; {longest}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
