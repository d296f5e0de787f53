"""Patches on demand, in a random order, randomly changed: the same for any number of workers.

Sample n of a training (n = 0, 1, 2, ...) is row `permutation(n // N)[n % N]` of the patch index
of N rows, changed by random numbers of its own: all follows from (seed, n), whichever worker asks.
Step s holds the samples s * batch_size to (s + 1) * batch_size - 1, shared out among the workers.

Images are (C, I, J, K) float32, targets (C, I, J, K) with one mask a class; NaN where the truth
is not known.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import IGNORED
from gliotrail.imaging import kernels
from gliotrail.imaging.geometry import Box, Vox3, vox3
from gliotrail.imaging.labels import Labels, class_masks
from gliotrail.imaging.patch import PatchIndex
from gliotrail.imaging.prepared import PreparedCase, read_labels_patch, read_patch
from gliotrail.params import Augment
from gliotrail.segmentation.augment import (
    change_intensities,
    changes_intensities,
    own_changes,
    placement,
    source_box,
    warp,
)
from gliotrail.synthesis.tumours import Anatomy, Style, synthesize

SYNTHETIC: Final = "synthetic"
"""Stands for the case's name in a synthetic sample."""
FUSED_FROM_VOXELS: Final = 2**28
"""Compiled kernels save up to 15 ns a voxel and cost a second to load: from here on they pay."""


@dataclass(frozen=True)
class Sample:
    """Which patch, and the seed of its random changes."""

    number: int
    case: str
    corner_vox: Vox3
    augmentation_seed: tuple[int, int]


class Source(Protocol):
    """Where samples come from."""

    @property
    def size_vox(self) -> Vox3:
        """Every sample's size."""

    @property
    def width(self) -> tuple[int, int]:
        """How many channels an image has, and how many classes its targets."""

    def sample(self, number: int) -> Sample:
        """Sample n, for any n >= 0."""

    def serve(self, sample: Sample) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
        """The image and its targets, both (C, I, J, K), randomly changed."""


@dataclass(frozen=True)
class Patches:
    """Real patches: all that decides what sample n is.

    fused: by compiled kernels, the same to the last bit (see `FUSED_FROM_VOXELS`).
    """

    index: PatchIndex
    cases: Mapping[str, PreparedCase]
    augment: Augment
    standardize: str
    seed: int
    fused: bool = False

    @property
    def size_vox(self) -> Vox3:
        """Every patch's size."""
        return self.index.size_vox

    @property
    def width(self) -> tuple[int, int]:
        """How many channels an image has, and how many classes its targets."""
        return len(self.cases[self.index.cases[0]].channels), len(self.index.classes)

    def sample(self, number: int) -> Sample:
        """Sample n, for any n >= 0."""
        lap, place = divmod(number, len(self.index))
        row = _permutation(self.seed, lap, len(self.index))[place]
        case = self.index.cases[self.index.case_number[row]]
        return Sample(number, case, vox3(self.index.corner_vox[row]), (self.seed, number))

    def serve(self, sample: Sample) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
        """The image and its targets, both (C, I, J, K), randomly changed."""
        case, augment = self.cases[sample.case], self.augment
        size_vox, corner_vox = self.size_vox, sample.corner_vox
        # a generator of its own, so that a change that is off leaves the others' numbers alone
        rng = np.random.default_rng((*sample.augmentation_seed, 1))
        matrix = placement(augment, rng) if augment.rotate or augment.scale else None
        box = (
            Box.at(corner_vox, size_vox)
            if matrix is None
            else source_box(corner_vox, size_vox, matrix)
        )
        image_CIJK = read_patch(case, box, self.standardize, self.fused)
        labels_IJK = read_labels_patch(case, box)
        if matrix is not None:
            placed = box, corner_vox, size_vox, matrix, self.fused
            image_CIJK, labels_IJK = warp(image_CIJK, labels_IJK, *placed)
        if changes_intensities(augment):
            image_CIJK = change_intensities(image_CIJK, augment, rng)
        seed = sample.augmentation_seed
        image_CIJK, labels_IJK = own_changes(image_CIJK, labels_IJK, augment, seed)
        rng = np.random.default_rng(sample.augmentation_seed)
        targets_CIJK: npt.NDArray[Any] = class_masks(labels_IJK, len(self.index.classes))
        unknown_IJK = labels_IJK == IGNORED
        if unknown_IJK.any():
            targets_CIJK = targets_CIJK.astype(np.float32)
            targets_CIJK[:, unknown_IJK] = np.nan
        return change(image_CIJK, targets_CIJK, augment, rng, self.fused)


@dataclass(frozen=True)
class Phantoms:
    """Synthetic tumours in real anatomy (see `synthesis.tumours`), each one new.

    healthy: the share without a tumour.
    """

    anatomies: Sequence[Anatomy]
    shapes: Sequence[Labels]
    style: Style
    healthy: float
    size_vox: Vox3
    seed: int

    @property
    def width(self) -> tuple[int, int]:
        """How many channels an image has, and how many classes its targets."""
        return len(BRATS.channels), len(BRATS.classes)

    def sample(self, number: int) -> Sample:
        """Sample n, for any n >= 0."""
        return Sample(number, SYNTHETIC, (0, 0, 0), (self.seed, number))

    def serve(self, sample: Sample) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The image and its targets, both (C, I, J, K)."""
        rng = np.random.default_rng(sample.augmentation_seed)
        anatomy = self.anatomies[int(rng.integers(len(self.anatomies)))]
        shape = self.shapes[int(rng.integers(len(self.shapes)))]
        image_CIJK, labels_IJK, unknown_IJK = synthesize(
            anatomy, shape, self.size_vox, rng, self.style, with_tumour=rng.random() >= self.healthy
        )
        targets_CIJK = class_masks(labels_IJK, len(BRATS.classes)).astype(np.float32)
        targets_CIJK[:, unknown_IJK] = np.nan
        return image_CIJK, targets_CIJK


@dataclass(frozen=True)
class Mixture:
    """Real patches with a share of synthetic ones, evenly spread (rehearsal: Robins, 1995)."""

    real: Patches
    synthetic: Phantoms
    share: float

    @property
    def size_vox(self) -> Vox3:
        """Every sample's size."""
        return self.real.size_vox

    @property
    def width(self) -> tuple[int, int]:
        """How many channels an image has, and how many classes its targets."""
        return self.real.width

    def sample(self, number: int) -> Sample:
        """Sample n, for any n >= 0. The order of the real ones is as without synthetic ones."""
        if is_synthetic(number, self.share):
            return self.synthetic.sample(number)
        before = math.floor(number * self.share)
        return replace(self.real.sample(number - before), number=number)

    def serve(self, sample: Sample) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
        """The image and its targets, both (C, I, J, K), randomly changed."""
        return (self.synthetic if sample.case == SYNTHETIC else self.real).serve(sample)


@lru_cache(maxsize=4)
def _permutation(seed: int, lap: int, rows: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, lap, rows)).permutation(rows)


def change(
    image_CIJK: npt.NDArray[np.float32],
    targets_CIJK: npt.NDArray[Any],
    augment: Augment,
    rng: np.random.Generator,
    fused: bool = False,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Mirror along each axis with probability `flip`; scale and shift each channel's foreground.

    The background stays exactly 0.
    """
    flipped = tuple(axis + 1 for axis in range(3) if rng.random() < augment.flip)
    n_channels = len(image_CIJK)
    scale_C = (1 + augment.intensity_scale * rng.uniform(-1, 1, n_channels)).astype(np.float32)
    shift_C = (augment.intensity_shift * rng.uniform(-1, 1, n_channels)).astype(np.float32)
    targets = np.ascontiguousarray(np.flip(targets_CIJK, flipped))
    changed = np.empty(image_CIJK.shape, np.float32)
    kernel = kernels.fitting(kernels.change, image_CIJK, np.float32) if fused else None
    if kernel:
        flip = (1 in flipped, 2 in flipped, 3 in flipped)
        kernel(image_CIJK.transpose(0, 3, 2, 1), flip, scale_C, shift_C, changed)
        return changed, targets
    foreground = (image_CIJK != 0).any(axis=0)
    values = image_CIJK * scale_C[:, None, None, None] + shift_C[:, None, None, None] * foreground
    mirrored = np.flip(values, flipped)
    for k in range(0, mirrored.shape[3], 8):  # twice as fast as at once, where i is the fastest
        changed[..., k : k + 8] = mirrored[..., k : k + 8]
    return changed, targets


@dataclass(frozen=True)
class Batch:
    """One worker's part of one step. Tensors are (B, C, I, J, K); possibly B = 0."""

    image_BCIJK: Tensor
    targets_BCIJK: Tensor
    samples: tuple[Sample, ...]


def part_of_step(
    step: int, batch_size: int, rank: int, workers: int, share: float = 0
) -> list[int]:
    """The numbers of the samples that are a worker's part of a step (steps count from 0).

    Samples are dealt in turn, the rarer kind first, from the worker where the step before ended: in
    the long run each worker has its share of the synthetic ones, which take longer to make.

    Args:
        share: of synthetic samples, see `Mixture`.
    """
    numbers = range(step * batch_size, (step + 1) * batch_size)
    room = [len(numbers[(of - numbers[0]) % workers :: workers]) for of in range(workers)]
    before = math.floor(numbers[0] * share)
    rare = [n for n in numbers if is_synthetic(n, share) == (share <= 0.5)]
    turn = (before if share <= 0.5 else numbers[0] - before) if rare else numbers[0]
    mine = []
    for n in (*rare, *(n for n in numbers if n not in rare)):
        while not room[turn % workers]:
            turn += 1
        room[turn % workers] -= 1
        if turn % workers == rank:
            mine.append(n)
        turn += 1
    return sorted(mine)


def is_synthetic(number: int, share: float) -> bool:
    """Whether sample n of a mixture is synthetic: evenly spread."""
    return math.floor((number + 1) * share) > math.floor(number * share)


def batches(
    source: Source,
    steps: range,
    batch_size: int,
    rank: int = 0,
    workers: int = 1,
    device: torch.device | None = None,
    readers: int = 1,
) -> Iterator[Batch]:
    """A worker's batches of the given steps, read while the network works on earlier ones.

    They are in the CPU's memory; pinned where `device` is a GPU, which then copies them itself.

    Args:
        readers: how many samples are made at a time, by threads: the slow parts, in numpy, scipy
            and Numba, release the GIL. As many steps are read ahead as keep the threads busy.
    """
    pinned = device is not None and device.type == "cuda"
    share = source.share if isinstance(source, Mixture) else 0
    ahead = max(1, -(-readers * workers // batch_size))

    def begin(step: int) -> tuple[Batch, list[Future[None]]]:
        numbers = part_of_step(step, batch_size, rank, workers, share)
        samples = tuple(source.sample(number) for number in numbers)
        image, targets = (
            torch.empty(
                (len(samples), channels, *source.size_vox),
                pin_memory=pinned,
                memory_format=torch.channels_last_3d,
            )
            for channels in source.width
        )

        def fill(place: int) -> None:
            image_CIJK, targets_CIJK = source.serve(samples[place])
            image[place] = torch.from_numpy(image_CIJK)
            targets[place] = torch.from_numpy(targets_CIJK)

        filled = [pool.submit(fill, place) for place in range(len(samples))]
        return Batch(image, targets, samples), filled

    pool = ThreadPoolExecutor(readers, thread_name_prefix="patches")
    coming: deque[tuple[Batch, list[Future[None]]]] = deque()
    try:
        for step in steps:
            while len(coming) <= ahead and step + len(coming) in steps:
                coming.append(begin(step + len(coming)))
            batch, filled = coming.popleft()
            for sample in filled:
                sample.result()
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
