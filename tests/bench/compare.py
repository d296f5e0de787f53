"""Gliotrail beside what its users would pick instead, on the same work: one table.

    make bench          (python -m tests.bench.compare [PART ..])

Ours runs in this environment, the peers in `.venv-bench`, each one process of one thread, asked in
turn (see `protocol`); a row's figures are medians of the rounds, its ratio the median of each
round's own. With PARTs named, only these are run, and nothing is written to docs/log/bench.md.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from gliotrail import params
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared, read_labels_patch, read_patch
from tests.bench import growth, reader, repro
from tests.bench.report import Row, write

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
DEMO = ROOT / "data/demo"
LOG = ROOT / "docs/log/bench.md"


@dataclass(frozen=True)
class Part:
    """A piece of work: what it is, in how many rounds, by whom, and what is wanted of the ratio.

    targets: peer -> how many times its time ours is to go in. The first is the one to beat.
    """

    name: str
    what: str
    rounds: int
    ours: tuple[str, ...]
    peers: tuple[str, ...]
    targets: tuple[tuple[str, str, float], ...]
    works: int = 1
    memory: bool = False


PARTS = (
    Part("read", "read a .nii.gz of {scan}, int16", 7, ("Gliotrail",), ("nibabel",),
         (("Gliotrail", "nibabel", 3),)),
    Part("patch", "serve a random patch of {patch}, standardised", 15,
         ("Gliotrail", "Gliotrail/numpy"), ("nnU-Net/blosc2",),
         (("Gliotrail", "nnU-Net/blosc2", 8), ("Gliotrail/numpy", "nnU-Net/blosc2", 7)), 20),
    Part("course", "patch of {course} by the course's rule, each slice standardised", 7,
         ("Gliotrail", "Gliotrail/numpy"), ("nnU-Net/blosc2", "numpy", "MONAI", "TorchIO"),
         (("Gliotrail", "nnU-Net/blosc2", 3.5),), 20),
    Part("counts", "Dice, sensitivity, specificity of 3 classes, {scan}", 7, ("Gliotrail",),
         ("nnU-Net/booleans", "MONAI"), (("Gliotrail", "nnU-Net/booleans", 15),)),
    Part("hd95", "HD95 of 3 regions, {scan}", 3, ("Gliotrail",), ("MONAI", "surface-distance"),
         (("Gliotrail", "MONAI", 2.5),)),
    Part("step", "training step, 833,507 parameters, {side}^3", 3, ("Gliotrail", "PyTorch"), (),
         (("Gliotrail", "PyTorch", 1.5),), memory=True),
    Part("scan", "segment a whole scan of {scan}, base 8", 2, ("Gliotrail",), ("MONAI",),
         (("Gliotrail", "MONAI", 4),), memory=True),
    Part("deep", "segment a whole scan of {scan}, base 8, depth 4", 2, ("Gliotrail",), ("MONAI",),
         (("Gliotrail", "MONAI", 4),), memory=True),
    Part("coarse", "segment a head of 1.3 mm, resampled to 1 mm and back, base 32, beside the same"
         " head of 1 mm", 1, ("Gliotrail", "1mm"), (), (("Gliotrail", "1mm", 1 / 3),), memory=True),
    Part("loop", "a step of a network of 15 parameters: all but bookkeeping is PyTorch's time", 7,
         ("Gliotrail", "PyTorch"), ("MONAI",), (("Gliotrail", "MONAI", 1),), 300),
)  # fmt: skip


def lay_out(folder: Path, slices: int, size: int, course: tuple[int, int, int], side: int) -> None:
    """One scan, from real ones: the demo's BRATS_009, repeated to and fro along k, as int16."""
    source = DEMO if slices > 50 else DEMO / "crops"
    names = ("imagesTr/BRATS_009", "labelsTr/BRATS_009")
    if source != DEMO:
        names = ("BRATS_009_crop_image", "BRATS_009_crop_label")
    for name, to, kind in zip(names, ("imagesTr", "labelsTr"), ("i2", "u1"), strict=True):
        image: Any = nib.load(source / f"{name}.nii.gz")
        array = np.asarray(image.dataobj).astype(kind)
        there_and_back = np.concatenate([array, array[:, :, ::-1]] * 2, axis=2)[:, :, :slices]
        (folder / "raw" / to).mkdir(parents=True)
        nib.save(nib.Nifti1Image(there_and_back, image.affine), folder / "raw" / to / "A.nii.gz")
    description = json.loads((DEMO / "dataset.json").read_text())
    description["training"] = [{"image": "./imagesTr/A.nii.gz", "label": "./labelsTr/A.nii.gz"}]
    description |= {"numTraining": 1, "numTest": 0, "test": []}
    (folder / "raw/dataset.json").write_text(json.dumps(description))
    split = params.Split(seed=7, test=(), validation=())
    prepare(
        params.Prepare(spacing="native", split=split),
        folder / "raw",
        folder / "prepare",
        processes=1,
    )
    prepared = load_prepared(folder / "prepare")
    (case,) = prepared.cases.values()
    section = params.load(ROOT / "params.yaml").patch
    patch(section.model_copy(update={"background_below": 0.95}), prepared, course, folder / "patch")
    whole, rng = Box((0, 0, 0), case.ras_shape_vox), np.random.default_rng(0)
    room = [n - size + 1 for n in case.box.size_vox]
    inside = rng.integers(0, room, (20, 3))
    ref = np.ascontiguousarray(read_labels_patch(case, whole))
    arrays = {
        "inside": inside,
        "corners": inside + case.box.start_vox,
        "peers_box": read_patch(case, case.box, "foreground"),
        "peers_scan": read_patch(case, whole, "foreground"),
        "peers_raw": read_patch(case, whole, "none"),
        "ref": ref,
        "pred": np.roll(ref, (2, -1, 1), (0, 1, 2)),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))
    by = "x".join(map(str, case.ras_shape_vox))
    settings = {"size": size, "course": course, "side": side, "scan": by}
    (folder / "settings.json").write_text(json.dumps(settings))


class Process:
    """Ours or the peers'."""

    def __init__(self, python: Path, script: str, folder: Path) -> None:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        env = os.environ | one_thread | {"PYTHONPATH": str(ROOT / "platform")}
        command = [python, "-W", "ignore", HERE / script, folder]
        self.process = subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def measure(self, part: str, entrant: str) -> tuple[float, float]:
        """Seconds of one piece of work, and the most memory that the process had, in MB."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{part} {entrant}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{entrant} ended at {part}; what it said is above")
        seconds, peak_mb = json.loads(line)
        return seconds, peak_mb

    def close(self) -> None:
        """It ends with its input."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(part: Part, folder: Path, own: Process, peers: Process | None, rounds: int) -> Row:
    """All entrants in turn, round by round."""
    entrants = [(name, own) for name in part.ours]
    entrants += [(name, peers) for name in part.peers] if peers else []
    seconds: dict[str, list[float]] = {name: [] for name, _ in entrants}
    peaks_mb: dict[str, float] = {}
    for number in range(rounds):
        turn = number % len(entrants)
        for name, process in entrants[turn:] + entrants[:turn]:
            took_s, peaks_mb[name] = process.measure(part.name, name)
            seconds[name].append(took_s / part.works)
    settings = json.loads((folder / "settings.json").read_text())
    sizes = {
        "scan": settings["scan"],
        "patch": f"{settings['size']}^3",
        "course": "x".join(map(str, settings["course"])),
        "side": settings["side"],
    }
    ratios = {
        (ours, peer): statistics.median(
            b / a for a, b in zip(seconds[ours], seconds[peer], strict=True)
        )
        for ours in part.ours
        for peer in seconds
        if peer != ours and not peer.startswith("Gliotrail")
        if ours.startswith("Gliotrail")
    }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    shown_mb = peaks_mb if part.memory else {}
    return Row(part.what.format(**sizes), rounds, medians, ratios, part.targets, shown_mb)


def run(folder: Path, parts: list[Part], with_peers: bool, rounds: int | None = None) -> list[Row]:
    """Measure the parts on what was laid out in `folder`."""
    own = Process(Path(sys.executable), "own.py", folder)
    peers = None
    try:
        if with_peers:
            peers = Process(ROOT / ".venv-bench/bin/python", "peers_script.py", folder)
        rows = []
        for part in parts:
            rows.append(measure(part, folder, own, peers, rounds or part.rounds))
            print(rows[-1].line(), flush=True)
        return rows
    finally:
        for process in filter(None, (own, peers)):
            process.close()


def main(names: list[str]) -> None:
    """Lay out, measure, write the table."""
    parts = [part for part in PARTS if part.name in names or not names]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lay_out(folder, slices=155, size=64, course=(160, 160, 16), side=64)
        rows = run(folder, parts, with_peers=True)
        if names:
            return
        grown = growth.lines(folder, cases=(2, 8, 32), steps=1000)
        lay_out(folder / "reader", slices=155, size=96, course=(96, 96, 96), side=16)
        grown += reader.lines(folder / "reader")
        grown += ["\n## How long `dvc repro` takes by itself\n", *repro.lines(folder / "project")]
    print("\n".join(grown))
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    described = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(described, cwd=ROOT, capture_output=True, text=True, check=True)
    write(LOG, rows, grown, today, done.stdout.strip())
    print(f"written to {LOG.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
