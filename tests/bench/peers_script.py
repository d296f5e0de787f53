"""The peers' side of the bench, run by `.venv-bench`'s Python alone, one thread.

python peers_script.py FOLDER: each peer as its users would set it up, on what `compare` laid out.
"""

import json
import sys
from pathlib import Path

import blosc2
import monai.data
import monai.engines
import monai.inferers
import monai.losses
import monai.metrics
import monai.transforms
import nibabel as nib
import numpy as np
import surface_distance
import torch
import torchio
from protocol import answer

from gliotrail.segmentation.unet import UNet3d, initialize

FOLDER = Path(sys.argv[1])
PATCHES, LOOP_STEPS = 20, 300
SETTINGS = json.loads((FOLDER / "settings.json").read_text())
COURSE_SIZE, SIDE = SETTINGS["course"], SETTINGS["size"]
REGIONS = ((1, 2, 3), (2, 3), (3,))
BACKGROUND_BELOW = 0.95


def labels():
    return np.load(FOLDER / "ref.npy"), np.load(FOLDER / "pred.npy")


def raw():
    """The whole scan, raw: float32 (C, I, J, K), and its labels (1, I, J, K)."""
    return np.load(FOLDER / "peers_raw.npy"), np.load(FOLDER / "ref.npy")[None]


def nibabel_read():
    return lambda: np.asarray(nib.load(FOLDER / "raw/imagesTr/A.nii.gz").dataobj)


def stored(name, array):
    """As nnU-Net keeps a case: float32, blocks that fit into L1, ZSTD 8, memory-mapped."""
    path = str(FOLDER / f"{name}.b2nd")
    blocks = (len(array), 8, 16, 8) if len(array) > 1 else (1, 16, 32, 16)
    blosc2.asarray(
        array,
        urlpath=path,
        mode="w",
        chunks=(len(array), *(min(64, n) for n in array.shape[1:])),
        blocks=tuple(min(b, n) for b, n in zip(blocks, array.shape, strict=True)),
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1},
    )
    return blosc2.open(path, mode="r", mmap_mode="r", dparams={"nthreads": 1})


def blosc2_patches():
    image = stored("box", np.load(FOLDER / "peers_box.npy"))
    corners = np.load(FOLDER / "inside.npy")[:PATCHES]
    boxes = [tuple(slice(a, a + SIDE) for a in corner) for corner in corners.tolist()]

    def work():
        for box in boxes:
            image[(slice(None), *box)]

    return work


def many(one):
    """One after another, as a training has them."""

    def work():
        for _ in range(PATCHES):
            one()

    return work


def standardized(image):
    """Per channel and slice, vectorised."""
    mean = image.mean(axis=(1, 2), keepdims=True)
    std = image.std(axis=(1, 2), keepdims=True)
    return (image - mean) / np.where(std == 0, np.inf, std)


def course_by(crop, shape):
    """Corners at random until the background rule holds, as the course draws them."""
    rng = np.random.default_rng(0)

    def one():
        for _ in range(1000):
            corner = [int(rng.integers(n - s + 1)) for n, s in zip(shape, COURSE_SIZE, strict=True)]
            box = tuple(slice(a, a + s) for a, s in zip(corner, COURSE_SIZE, strict=True))
            of_labels = crop("labels", box)
            if (of_labels == 0).mean() < BACKGROUND_BELOW:
                return standardized(crop("image", box)), of_labels
        raise RuntimeError("no patch")

    return many(one)


def blosc2_course():
    kept = dict(zip(("image", "labels"), raw(), strict=True))
    shape = kept["labels"].shape[1:]
    kept = {name: stored(name, array) for name, array in kept.items()}
    return course_by(lambda name, box: kept[name][(slice(None), *box)], shape)


def numpy_course():
    kept = dict(zip(("image", "labels"), raw(), strict=True))
    return course_by(lambda name, box: kept[name][(slice(None), *box)], kept["labels"].shape[1:])


def monai_course():
    """CacheDataset without copies; the rule by drawing again, as users do it."""
    image, mask = raw()
    crop = monai.transforms.RandSpatialCropd(["image", "labels"], COURSE_SIZE, random_size=False)
    crop.set_random_state(0)
    items = [{"image": torch.from_numpy(image), "labels": torch.from_numpy(mask)}]
    cached = monai.data.CacheDataset(
        items, monai.transforms.Compose([crop]), copy_cache=False, progress=False
    )

    def one():
        while True:
            patch = cached[0]
            if float((patch["labels"] == 0).float().mean()) < BACKGROUND_BELOW:
                image = patch["image"]
                std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True, correction=0)
                std = torch.where(std == 0, torch.inf, std)
                return (image - mean) / std, patch["labels"]

    return many(one)


def torchio_course():
    image, mask = raw()
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=torch.from_numpy(image)),
        labels=torchio.LabelMap(tensor=torch.from_numpy(mask)),
    )
    drawn = torchio.UniformSampler(COURSE_SIZE)(subject)

    def one():
        for patch in drawn:
            of_labels = patch["labels"].data
            if float((of_labels == 0).float().mean()) < BACKGROUND_BELOW:
                return standardized(patch["image"].data.numpy()), of_labels
        raise RuntimeError("no patch")

    return many(one)


def monai_scan(depth):
    """The whole grid in windows of 96, overlap 0.25."""
    scan = torch.from_numpy(np.load(FOLDER / "peers_scan.npy"))[None]
    network = UNet3d(depth, 8, up_convolution="plain").eval()
    initialize(network, 0)
    side = min(96, *(n // 8 * 8 for n in scan.shape[2:]))

    @torch.inference_mode()
    def work():
        inferred = monai.inferers.sliding_window_inference(scan, [side] * 3, 1, network, 0.25)
        return inferred.sigmoid()

    return work


def monai_loop():
    """The engine alone: no handler, nothing kept or told."""
    network = torch.nn.Conv3d(4, 3, 1)
    batch = {"image": torch.ones(1, 4, 4, 4, 4), "label": torch.ones(1, 3, 4, 4, 4)}
    trainer = monai.engines.SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch] * LOOP_STEPS,
        epoch_length=LOOP_STEPS,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters()),
        loss_function=monai.losses.DiceLoss(sigmoid=True, squared_pred=True),
    )
    return trainer.run


def monai_counts():
    """DiceMetric and ConfusionMatrixMetric on one-hot volumes, ready made."""
    one_hot = [np.stack([volume == c for c in range(4)])[None] for volume in labels()]
    ref, pred = (torch.from_numpy(volume).float() for volume in one_hot)

    def work():
        monai.metrics.compute_dice(pred, ref, include_background=False)
        counts = monai.metrics.get_confusion_matrix(pred, ref, include_background=False)
        for name in ("sensitivity", "specificity"):
            monai.metrics.compute_confusion_matrix_metric(name, counts)

    return work


def boolean_counts():
    """Boolean masks of each class, as nnU-Net's evaluation has them."""
    ref, pred = labels()

    def work():
        for label in (1, 2, 3):
            truth, found = ref == label, pred == label
            tp, fp = np.sum(truth & found), np.sum(~truth & found)
            fn, tn = np.sum(truth & ~found), np.sum(~truth & ~found)
            _ = 2 * tp / (2 * tp + fp + fn), tp / (tp + fn), tn / (tn + fp)

    return work


def pairs():
    return [[np.isin(volume, codes) for volume in labels()] for codes in REGIONS]


def monai_hd95():
    tensors = [[torch.from_numpy(mask)[None, None] for mask in pair] for pair in pairs()]
    return lambda: [
        monai.metrics.compute_hausdorff_distance(
            pred, ref, include_background=True, percentile=95, spacing=(1.0, 1.0, 1.0)
        )
        for ref, pred in tensors
    ]


def surface_distance_hd95():
    masks = pairs()

    def work():
        for ref, pred in masks:
            distances = surface_distance.compute_surface_distances(ref, pred, (1, 1, 1))
            surface_distance.compute_robust_hausdorff(distances, 95)

    return work


PARTS = {
    "read": {"nibabel": nibabel_read},
    "patch": {"nnU-Net/blosc2": blosc2_patches},
    "course": {
        "nnU-Net/blosc2": blosc2_course,
        "numpy": numpy_course,
        "MONAI": monai_course,
        "TorchIO": torchio_course,
    },
    "scan": {"MONAI": lambda: monai_scan(2)},
    "deep": {"MONAI": lambda: monai_scan(4)},
    "loop": {"MONAI": monai_loop},
    "counts": {"nnU-Net/booleans": boolean_counts, "MONAI": monai_counts},
    "hd95": {"MONAI": monai_hd95, "surface-distance": surface_distance_hd95},
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(PARTS)
