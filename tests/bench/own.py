"""Gliotrail's side of the bench: `python tests/bench/own.py FOLDER`, one thread."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from protocol import Work, answer

from gliotrail.dataset.brats import BRATS
from gliotrail.imaging import nifti
from gliotrail.imaging.formats.course import standardized_patch
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.patch import read_index
from gliotrail.imaging.prepared import load_prepared, read_labels_patch, read_patch
from gliotrail.imaging.resample import resample_scan
from gliotrail.params import Model
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.stop import asked_by
from gliotrail.runs.writer import Writer
from gliotrail.segmentation import unet
from gliotrail.segmentation.batches import Sample
from gliotrail.segmentation.inference import predict_case
from gliotrail.segmentation.loop import SCORE, Plan, fit
from gliotrail.segmentation.losses import LOSSES
from gliotrail.segmentation.metrics import confusion, counts_of
from gliotrail.segmentation.segment import segment
from gliotrail.segmentation.surface_distance import hd95_mm
from gliotrail.segmentation.weights import Description

CLASS_LABELS, REGIONS = BRATS.class_labels, BRATS.region_labels
FOLDER = Path(sys.argv[1])
SETTINGS = json.loads((FOLDER / "settings.json").read_text())
SIDE = SETTINGS["side"]
"""Of a training step's patch."""
PATCHES = 20
"""Served in one piece of work."""
LOOP_STEPS = 300
FIRST_GRADIENTS: dict[str, torch.Tensor] = {}
"""Of a step's two forms."""


def case():
    (only,) = load_prepared(FOLDER / "prepare").cases.values()
    return only


def labels() -> tuple[np.ndarray, np.ndarray]:
    return np.load(FOLDER / "ref.npy"), np.load(FOLDER / "pred.npy")


def reading() -> Work:
    return lambda: nifti.read_image(FOLDER / "raw/imagesTr/A.nii.gz")


def patches(fused: bool) -> Work:
    scan, corners = case(), np.load(FOLDER / "corners.npy")
    boxes = [Box.at(corner, [SETTINGS["size"]] * 3) for corner in corners[:PATCHES]]

    def work() -> None:  # one after another, as a training has them
        for box in boxes:
            read_patch(scan, box, "foreground", fused)

    return work


def course_patches(fused: bool) -> Work:
    """The background rule is in the index, which the stage `patch` makes: see its own part."""
    scan, index = case(), read_index(next(FOLDER.glob("patch/*/index.parquet")))

    def forever() -> Iterator[Box]:
        while True:
            for corner in index.corner_vox:
                yield Box.at(corner, index.size_vox)

    boxes = forever()

    def work() -> None:
        for _ in range(PATCHES):
            box = next(boxes)
            standardized_patch(scan, box, fused)
            read_labels_patch(scan, box)

    return work


def step(how: unet.UpConvolution, channels_last: bool) -> Work:
    """Forward, loss, backward and AdamW of the 833,507-parameter network on one patch.

    Raises:
        AssertionError: at the same weights the gradients are others than the other form's.
    """
    network = unet.UNet3d(2, 32, up_convolution=how)
    unet.initialize(network, 0)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 4, SIDE, SIDE, SIDE, generator=generator)
    targets = (torch.rand(1, 3, SIDE, SIDE, SIDE, generator=generator) < 0.1).float()
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)
        image, targets = (t.to(memory_format=torch.channels_last_3d) for t in (image, targets))
    optimizer = torch.optim.AdamW(network.parameters())

    def work() -> None:
        optimizer.zero_grad()
        LOSSES["soft_dice"](network(image), targets).mean().backward()
        if how not in FIRST_GRADIENTS:
            FIRST_GRADIENTS[how] = torch.cat([p.grad.flatten() for p in network.parameters()])
            first, last = next(iter(FIRST_GRADIENTS.values())), FIRST_GRADIENTS[how]
            assert (first - last).norm() < 1e-4 * first.norm(), "the gradients differ"
        optimizer.step()

    return work


@dataclass(frozen=True)
class Ready:
    """Samples that cost nothing."""

    size_vox, width = (4, 4, 4), (4, 3)

    def sample(self, number: int) -> Sample:
        return Sample(number, "none", (0, 0, 0), (0, number))

    def serve(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((4, 4, 4, 4), np.float32), np.ones((3, 4, 4, 4), np.float32)


def loop() -> Work:
    """The training loop, with the journal of a run."""
    network = torch.nn.Conv3d(4, 3, 1)
    plan = Plan(
        steps=LOOP_STEPS,
        steps_per_epoch=LOOP_STEPS,
        batch_size=1,
        learning_rate=1e-3,
        weight_decay=0,
        warmup_steps=0,
        average=0.9,
        clip=0,
        optimizer="adamw",
        keep="last",
        loss="soft_dice",
        precision="float32",
    )

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder) / "run")
            run.begin({})
            writer = Writer(run)
            fit(
                network,
                Ready(),
                plan,
                lambda model: {SCORE: 0.0},
                lambda step, metrics, snapshot: writer.write(step, metrics),
                stop=lambda: asked_by(run) is not None,
            )
            writer.close()

    return work


def bare_loop() -> Work:
    """What every training does, and nothing else."""
    network = torch.nn.Conv3d(4, 3, 1)
    optimizer = torch.optim.AdamW(network.parameters())
    image, targets = torch.ones(1, 4, 4, 4, 4), torch.ones(1, 3, 4, 4, 4)

    def work() -> None:
        for _ in range(LOOP_STEPS):
            optimizer.zero_grad()
            LOSSES["soft_dice"](network(image), targets).mean().backward()
            optimizer.step()

    return work


def whole_scan(depth: int) -> Work:
    scan, network = case(), unet.UNet3d(depth, 8)
    unet.initialize(network, 0)
    network.to(memory_format=torch.channels_last_3d)
    return lambda: predict_case(network, scan, "foreground")


def new_patient(spacing_mm: float) -> Work:
    """The same head in larger voxels, as a scanner would have given it, by a network of 1 mm."""
    path = FOLDER / "raw/imagesTr/A.nii.gz"
    scan = nifti.read_image(path)
    if spacing_mm != 1:
        channels = np.moveaxis(scan.array, 3, 0)
        coarse_CIJK = resample_scan(channels, (1, 1, 1), (spacing_mm,) * 3)
        path = FOLDER / f"{spacing_mm}.nii.gz"
        affine = np.diag([*scan.affine.diagonal()[:3] * spacing_mm, 1])
        nifti.write_image(path, np.moveaxis(coarse_CIJK, 0, 3).astype(np.int16), affine)
        scan = nifti.read_image(path)
    model = Model(name="unet3d", depth=2, base_filters=32)
    network = unet.UNet3d(2, 32)
    unet.initialize(network, 0)
    network.to(memory_format=torch.channels_last_3d)
    description = Description(
        model=model, window=None, standardize="foreground", spacing_mm=(1, 1, 1), task=BRATS
    )
    return lambda: segment(scan, [(network, description)])


def counting() -> Work:
    ref, pred = labels()

    def work() -> None:
        table = confusion(ref, pred, 4)
        for codes in CLASS_LABELS.values():
            counts = counts_of(table, codes)
            _ = counts.dice, counts.sensitivity, counts.specificity

    return work


def surfaces() -> Work:
    masks = [[np.isin(volume, codes) for volume in labels()] for codes in REGIONS.values()]
    return lambda: [hd95_mm(ref, pred, (1, 1, 1)) for ref, pred in masks]


PARTS: dict[str, dict[str, Callable[[], Work]]] = {
    "read": {"Gliotrail": reading},
    "patch": {"Gliotrail": lambda: patches(True), "Gliotrail/numpy": lambda: patches(False)},
    "course": {
        "Gliotrail": lambda: course_patches(True),
        "Gliotrail/numpy": lambda: course_patches(False),
    },
    "step": {"Gliotrail": lambda: step("split", True), "PyTorch": lambda: step("plain", False)},
    "scan": {"Gliotrail": lambda: whole_scan(2)},
    "deep": {"Gliotrail": lambda: whole_scan(4)},
    "coarse": {"Gliotrail": lambda: new_patient(1.3), "1mm": lambda: new_patient(1)},
    "loop": {"Gliotrail": loop, "PyTorch": bare_loop},
    "counts": {"Gliotrail": counting},
    "hd95": {"Gliotrail": surfaces},
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(PARTS)
