"""How many CPUs a worker's reader needs: patches for a device that takes 60 ms a step.

    python -m tests.bench.reader

The device is simulated: a step sleeps, as the CPU does that waits for a GPU. Everything else is as
in a training: 4 patches of 96^3 a step, a quarter of them synthetic, all augmentations on.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gliotrail import params
from gliotrail.imaging.patch import read_index
from gliotrail.imaging.prepared import load_prepared
from gliotrail.segmentation.batches import Mixture, Patches, Phantoms, batches
from gliotrail.synthesis.tumours import Style, read_anatomy, read_shape, shape_path

ROOT = Path(__file__).parents[2]
BATCH, DEVICE_S, REHEARSAL = 4, 0.06, 0.25
MOST_WAITING = 0.05
AUGMENTED = {
    "flip": 0.5, "rotate": 0.2, "scale": 0.2, "noise": 0.1, "blur": 0.2, "brightness": 0.15,
    "contrast": 0.15, "low_resolution": 0.25, "gamma": 0.3, "intensity_scale": 0.3,
    "intensity_shift": 0.3,
}  # fmt: skip


def source_of(folder: Path) -> Mixture:
    """Of the scan that `compare.lay_out` laid out in a folder, and of the shipped heads."""
    values = params.load(ROOT / "params.yaml")
    phantoms, heads = values.pretrain.phantoms, ROOT / "data/pretrain"
    index = read_index(next(folder.glob("patch/*/index.parquet")))
    cases = load_prepared(folder / "prepare").cases
    augment = values.train.augment.model_copy(update=AUGMENTED)
    real = Patches(index, cases, augment, "foreground", 7, fused=True)
    anatomies = [read_anatomy(heads / name) for name in phantoms.anatomies]
    shapes = [read_shape(shape_path(heads, name)) for name in phantoms.shapes]
    style = Style(phantoms.spans)
    synthetic = Phantoms(anatomies, shapes, style, phantoms.healthy, index.size_vox, 7)
    return Mixture(real, synthetic, REHEARSAL)


@contextmanager
def on_cpus(number: int) -> Iterator[None]:
    """This thread, and those that it starts, on so many of its CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def step_s(
    source: Mixture, steps: int, cpus: int, readers: int, device_s: float, first: int = 0
) -> tuple[float, float]:
    """Seconds of a step, and the share of them that waits for patches: means of some steps."""
    with on_cpus(cpus):
        stream = batches(source, range(first, first + steps + 1), BATCH, readers=readers)
        next(stream)  # nothing was read ahead of the first
        waited_s, began_s = 0.0, time.perf_counter()
        for _ in range(steps):
            asked_s = time.perf_counter()
            next(stream)
            waited_s += time.perf_counter() - asked_s
            time.sleep(device_s)
        took_s = time.perf_counter() - began_s
        stream.close()
    return took_s / steps, waited_s / took_s


def lines(folder: Path, steps: int = 16, rounds: int = 3) -> list[str]:
    """Markdown: what one and two CPUs serve, and how many a device of that speed needs.

    Two CPUs with one reader are what a worker had before it read by several threads.
    """
    torch.set_num_threads(1)
    source, there = source_of(folder), min(2, len(os.sched_getaffinity(0)))
    step_s(source, 1, 1, 1, 0)  # compiles
    ways = sorted({(1, 1), (there, 1), (there, there)})  # CPUs, threads that read
    free: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    waits: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways:  # in turn: other work on the machine slows all of them
            free[way].append(step_s(source, steps, *way, 0, number * steps)[0])
            waits[way].append(step_s(source, steps, *way, DEVICE_S, number * steps)[1])
    alone_s = statistics.median(free[1, 1])
    gain = statistics.median(a / b for a, b in zip(free[1, 1], free[there, there], strict=True))

    def needed(device_s: float) -> int:
        return math.ceil(alone_s * (1 - MOST_WAITING) / device_s * there / gain)

    rows = [
        f"| {cpus} | {readers} | {statistics.median(free[cpus, readers]):.3f} s |"
        f" {statistics.median(waits[cpus, readers]):.0%} |"
        for cpus, readers in ways
    ]
    size = "x".join(map(str, source.size_vox))
    return [
        "\n## What a reader serves\n",
        f"{BATCH} patches of {size} a step, rehearsal {REHEARSAL}, all augmentations on, for a"
        f" simulated device of {DEVICE_S * 1000:.0f} ms a step (`python -m tests.bench.reader`); in"
        f" turn, medians of {rounds} rounds of {steps} steps:\n",
        "| CPUs of the worker | threads that read | a step's patches take | waiting for data |",
        "|---|---|---|---|",
        *rows,
        "\nCPUs that a worker needs to wait for data at most 5 % of its time, at that rate:\n",
        "| a step of the device takes | CPUs |",
        "|---|---|",
        *(f"| {s * 1000:.0f} ms | {needed(s)} |" for s in (DEVICE_S, 0.125, 0.25, 0.5, 1, 2)),
        f"\n{there} CPUs serve {gain:.2f} times what 1 serves (wanted: 1.7).",
    ]


def main() -> None:
    """Lay out, measure, print."""
    from tests.bench.compare import lay_out

    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder), slices=155, size=96, course=(96, 96, 96), side=16)
        print("\n".join(lines(Path(folder))))


if __name__ == "__main__":
    main()
