"""How time and memory grow: with the number of cases, and over a training's steps."""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from gliotrail import params
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared
from gliotrail.segmentation.batches import Patches
from gliotrail.segmentation.loop import SCORE, fit
from gliotrail.segmentation.unet import UNet3d, initialize
from tests.support.training_loop import PLAN

ROOT = Path(__file__).parents[2]
CROP = ROOT / "data/demo/crops"
SIZE = (16, 16, 16)


def lines(folder: Path, cases: Sequence[int], steps: int) -> list[str]:
    """A table of stages by number of cases, and a line on memory."""
    table = [
        "| cases | prepare, s a case | patch, s a case | one more: prepare, s | patch, s |",
        "|---|---|---|---|---|",
    ]
    for n in cases:
        prepare_s, patch_s = stages(folder / f"of_{n}", n)
        again_s = stages(folder / f"of_{n}", n + 1)
        figures = (prepare_s / n, patch_s / n, *again_s)
        table.append(f"| {n} | " + " | ".join(f"{s:.3f}" for s in figures) + " |")
    share, grown_mb = memory(folder / f"of_{cases[0]}", steps)
    return [
        "Stages on crops of 64x64x32, as many cases at once as there are cores (starting those "
        "processes is in it), and with one case more after that:\n",
        *table,
        f"\nA training of {steps} steps (a network of base 4, patches of 16^3, so that feeding "
        f"matters most) took {grown_mb:.1f} MB more at its end than after a tenth of it; it "
        f"waited for data {share:.1%} of its time.",
    ]


def stages(folder: Path, cases: int, processes: int | None = None) -> tuple[float, float]:
    """Seconds of `prepare` and `patch` on copies of a crop; processes as of `prepare`.

    What was made in the same folder before is kept, as by the pipeline.
    """
    description = json.loads((ROOT / "data/demo/dataset.json").read_text())
    description["training"] = []
    for n in range(cases):
        entry = {kind: f"./{kind}sTr/C{n:02}.nii.gz" for kind in ("image", "label")}
        for kind, path in entry.items():
            (folder / f"raw/{kind}sTr").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CROP / f"BRATS_009_crop_{kind}.nii.gz", folder / "raw" / path)
        description["training"].append(entry)
    description |= {"numTraining": cases, "numTest": 0, "test": []}
    (folder / "raw/dataset.json").write_text(json.dumps(description))
    split = params.Split(seed=7, test=(), validation=())
    started = time.perf_counter()
    kept = folder / "kept"
    out = folder / "prepare"
    shutil.rmtree(out, ignore_errors=True)  # as DVC does
    prepare(
        params.Prepare(spacing="native", split=split),
        folder / "raw",
        out,
        processes,
        kept / "prepare",
    )
    prepared_at = time.perf_counter()
    section = params.load(ROOT / "params.yaml").patch
    patch(section, load_prepared(out), SIZE, folder / "patch", kept / "patch")
    return prepared_at - started, time.perf_counter() - prepared_at


def memory(folder: Path, steps: int) -> tuple[float, float]:
    """The share of time that a training waited for data, and its growth in MB after a tenth."""
    prepared = load_prepared(folder / "prepare")
    section = params.load(ROOT / "params.yaml").patch
    index = patch(section, prepared, SIZE, folder / "patch")
    train = params.load(ROOT / "params.yaml").train
    source = Patches(index, prepared.cases, train.augment, "foreground", 7)
    network = UNet3d(2, 4)
    initialize(network, 0)
    plan = replace(PLAN, steps=steps, steps_per_epoch=steps, batch_size=1)
    resident, shares = {}, []

    def told(step: int, metrics: Mapping[str, float], snapshot: object) -> None:
        if step in {max(1, steps // 10), steps}:
            resident[step] = psutil.Process(os.getpid()).memory_info().rss
        if "train/data_wait_share" in metrics:
            shares.append(metrics["train/data_wait_share"])

    fit(network, source, plan, lambda model: {SCORE: 0.0}, told)
    grown = resident[steps] - resident[max(1, steps // 10)]
    return shares[-1], grown / 1e6
