"""The constants of docs/explanation/scale.md, counted and timed here.

python -m tests.cluster.scale_constants
"""

import os
import tempfile
import time
from pathlib import Path

import torch

from gliotrail.files import write_durably
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import Origin, describe
from gliotrail.runs.writer import Writer
from gliotrail.segmentation.loop import SCORE, World, fit
from gliotrail.segmentation.unet import UNet3d, initialize
from gliotrail.tracking.client import client
from gliotrail.tracking.delivery import deliver
from gliotrail.training.driver import to_bytes
from tests.cluster.gpu_check import PLAN, Balls

POINTS = 20_000


def main() -> None:
    """Print them."""
    summed: list[int] = []
    network = UNet3d(2, 32)
    initialize(network, 0)
    world = World(sum_in_place=lambda t: summed.append(t.numel() * t.element_size()))
    state = fit(
        network, Balls((8, 8, 8)), PLAN, lambda _: {SCORE: 0.0}, lambda *_: None, world, until=1
    )
    content = to_bytes(state)
    print(f"summed a step: {summed[0]:,} bytes")
    print(f"a checkpoint: {len(content):,} bytes")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began_s = time.perf_counter()
        for n in range(20):
            write_durably(folder / str(n), content)
        took_s = time.perf_counter() - began_s
        print(f"checkpoints written durably: {20 * len(content) / took_s / 1e6:.0f} MB/s")

        os.environ |= {"GLIOTRAIL_STATE": name, "MLFLOW_TRACKING_URI": ""}
        server = client()
        run = RunFolder(folder / "runs" / "a")
        described = describe(
            Origin.now(), experiment="scale", kind="train", name="scale", params={}, inputs={},
            data=[],
        )  # fmt: skip
        run.begin(described)
        writer = Writer(run)
        for step in range(1, POINTS // 2 + 1):
            writer.write(step, {"train/dice_ce_loss": 0.5, "train/soft_dice_loss": 0.5})
        writer.checkpoint(POINTS // 2, to_bytes(state))
        writer.close()
        began_s = time.perf_counter()
        deliver(run, server)
        took_s = time.perf_counter() - began_s
        print(f"points into MLflow on SQLite: {POINTS / took_s:,.0f} a second")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
