"""Stage `prepare`: every case checked once, then one memory-mappable array a case.

What a prepared case is, and how it is read: see `prepared`.
"""

import hashlib
import json
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gliotrail import params
from gliotrail.dataset.task import Task
from gliotrail.errors import DataError
from gliotrail.files import replacing, sha256, write_json
from gliotrail.imaging.case_cache import at_a_time, forget_others, key_of, linked, made
from gliotrail.imaging.fingerprint import case_fingerprint, dataset_fingerprint
from gliotrail.imaging.foreground import air_values
from gliotrail.imaging.formats.decathlon import Case, Dataset, read_dataset
from gliotrail.imaging.geometry import Box, Vox3, by_mm, same_spacing, spacing_mm, to_ras, vox3
from gliotrail.imaging.header import check_channels, check_same_grid, odd_in, read_header
from gliotrail.imaging.labels import of_classes, voxels_per_label
from gliotrail.imaging.nifti import Scan, read_channels, read_image, read_labels
from gliotrail.imaging.prepared import (
    FORMAT,
    INTENSITIES_FILE,
    SAME_MM,
    TASK_FILE,
    Intensity,
)
from gliotrail.imaging.resample import (
    affine_at,
    resample_labels,
    resample_scan,
    shape_at,
    target_spacing,
)
from gliotrail.imaging.split import (
    box_to_json,
    make_split,
    split_to_json,
)
from gliotrail.imaging.voxel_values import body_of, foreground_statistics, small_type
from gliotrail.progress import progress, say

Spacing = tuple[float, float, float]
_SAMPLED = 100_000
_PEAK_BYTES_PER_VALUE = 20  # of a process; measured on 240x240x155x4: 7 float32, 18 scaled int16


def prepare(
    section: params.Prepare,
    raw: Path,
    out: Path,
    processes: int | None = None,
    memory: Path | None = None,
) -> None:
    """Check every case in `raw` and write it to `out`, an array a case in `cases/`.

    Headers of all cases first, so that most mistakes are reported within seconds; then the voxels,
    one case at a time in each process. Earlier output stays if a case is bad.

    Args:
        section: the rule of the split, and the spacing.
        raw: a folder in the Decathlon's or nnU-Net's layout.
        out: the folder to make.
        processes: how many at a time; as many as there are cores and as memory allows if None.
        memory: folder of each case's files for the next run (see `case_cache`); none if None.

    Raises:
        ParamsError: the split, as `make_split`.
        DataError: as `read_dataset`, `read_image`, `read_labels`; a scan of air alone.
    """
    dataset = read_dataset(raw)
    shapes_vox, most_values, to_mm = _check_headers(dataset, section.spacing)
    split = make_split(section.split, shapes_vox)
    processes = processes or at_a_time(len(dataset.cases), _PEAK_BYTES_PER_VALUE * most_values)
    with replacing(out) as new, progress(len(dataset.cases), "prepare", "cases") as advance:
        fingerprints, keys = {}, []
        done = _prepare_all(dataset, to_mm, new / "cases", processes, memory)
        for name, key, fingerprint in done:
            fingerprints[name] = fingerprint
            keys.append(key)
            advance(1)
        _tell_bodies(fingerprints)
        write_json(new / TASK_FILE, dataset.task.model_dump(mode="json"))
        write_json(new / "fingerprint.json", dataset_fingerprint(fingerprints))
        intensities = _intensities(dataset.task, new / "cases", split.training)
        write_json(new / INTENSITIES_FILE, {n: of.model_dump() for n, of in intensities.items()})
        write_json(new / "split.json", split_to_json(split))
    forget_others(memory, keys)


def _check_headers(
    dataset: Dataset, spacing: str | Sequence[float]
) -> tuple[dict[str, Vox3], int, Spacing | None]:
    """Shapes in RAS+ of the labelled cases, the largest scan's values, the spacing to resample to.

    The shapes are those after resampling.
    """
    n_channels, headers = len(dataset.task.channels), []
    shapes_vox: dict[str, Vox3] = {}
    spacings_mm: dict[str, Spacing] = {}
    for case in dataset.cases:
        images = [read_header(path) for path in case.images]
        for header in images:
            check_channels(header, n_channels if len(images) == 1 else 1)
        headers += images
        no_memory = np.broadcast_to(np.uint8(0), images[0].shape_vox)
        turned, affine = to_ras(no_memory, images[0].affine)
        shapes_vox[case.name], spacings_mm[case.name] = vox3(turned.shape), spacing_mm(affine)
        if case.label:
            label_header = read_header(case.label)
            check_channels(label_header, 1)
            check_same_grid(label_header, images[0])
            headers.append(label_header)
    for line in odd_in(headers):
        say(line)
    to_mm = None
    labelled = [case for case in dataset.cases if case.label]
    if spacing == "native":
        _check_same_spacing(labelled, spacings_mm)
    else:
        to_mm = (
            target_spacing(list(spacings_mm.values()), list(shapes_vox.values()))
            if isinstance(spacing, str)
            else (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        )
        say(f"scans are resampled to {by_mm(to_mm)}")
        shapes_vox = {
            name: shape_at(shape, spacings_mm[name], to_mm) for name, shape in shapes_vox.items()
        }
    most = max((math.prod(shape) for shape in shapes_vox.values()), default=0)
    most = max(most, *(math.prod(header.shape_vox) for header in headers))
    return {case.name: shapes_vox[case.name] for case in labelled}, most * n_channels, to_mm


def _check_same_spacing(cases: Sequence[Case], spacings_mm: Mapping[str, Spacing]) -> None:
    """Refuse cases of different spacings: a network sees voxels, not mm."""
    for case in cases:
        first_mm, own_mm = spacings_mm[cases[0].name], spacings_mm[case.name]
        if not same_spacing(first_mm, own_mm):
            wanted = f"that of the other cases, {by_mm(first_mm)}"
            do = "set prepare.spacing to median or to three lengths in mm"
            raise DataError(
                "spacing in RAS+", where=case.image, wanted=wanted, got=by_mm(own_mm), do=do
            )


def _tell_bodies(fingerprints: Mapping[str, Mapping[str, Any]]) -> None:
    """Say where air was not 0, and where there was none."""
    shifted = [name for name, of in fingerprints.items() if any(of["air"].values())]
    if shifted:
        air = ", ".join(f"{c} {value:g}" for c, value in fingerprints[shifted[0]]["air"].items())
        say(
            f"{len(shifted)} cases' air is not 0, such as {shifted[0]}: {air}; it counts as outside"
        )
    whole = [name for name, of in fingerprints.items() if of["whole"]]
    if whole:
        say(
            f"{len(whole)} cases have no air around the body, such as {whole[0]}: "
            "every voxel of them counts as inside"
        )


def _intensities(task: Task, folder: Path, training: Sequence[str]) -> dict[str, Intensity]:
    """The CT channels' values in the training cases' classes, or in the whole body without any.

    At most _SAMPLED values a case count, evenly spread.
    """
    found = {}
    for c, channel in enumerate(task.channels):
        if channel.kind != "CT":
            continue
        samples = []
        for name in training:
            image_IJK = np.load(folder / name / "image.npy", mmap_mode="r")[..., c]
            labels_IJK = np.load(folder / name / "labels.npy", mmap_mode="r")
            inside = of_classes(labels_IJK)
            values = image_IJK[inside if inside.any() else image_IJK != 0].astype(np.float64)
            air = json.loads((folder / name / "case.json").read_text())["air_C"][c]
            samples.append(values[:: max(1, len(values) // _SAMPLED)] + air)
        values = np.concatenate(samples)
        low, high = np.percentile(values, [0.5, 99.5])
        found[channel.name] = Intensity(
            low=float(low), high=float(high), mean=float(values.mean()),
            std=float(values.std()) or 1.0,
        )  # fmt: skip
    return found


def _prepare_all(
    dataset: Dataset, to_mm: Spacing | None, folder: Path, processes: int, memory: Path | None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each case's name, key and fingerprint, as it is done."""
    jobs = []
    for case in dataset.cases:
        order = dataset.channel_order if len(case.images) == 1 else range(len(case.images))
        job = _job(case, dataset.task, tuple(order), to_mm, folder / case.name, memory)
        if (fingerprint := linked(memory, job.key, job.files)) is not None:
            yield case.name, job.key, fingerprint
        else:
            jobs.append(job)
    processes = min(processes, len(jobs))
    pool = pool_of(processes) if processes > 1 else None
    if pool is None:
        for job in jobs:
            yield job.case.name, job.key, job.run()
        return
    with pool, killed_as_error():
        running = {pool.submit(job.run): job for job in jobs}
        try:
            for done in as_completed(running):
                yield running[done].case.name, running[done].key, done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Job:
    """A case to prepare: which files to write, and the key that they are kept under."""

    case: Case
    task: Task
    channel_order: Sequence[int]
    to_mm: Spacing | None
    hashes: dict[str, str | None]
    key: str
    files: Sequence[Path]
    memory: Path | None

    def run(self) -> dict[str, Any]:
        """Write the files; the case's fingerprint."""
        folder = self.files[0].parent
        work = partial(_write_case, self, folder)
        return made(self.memory, self.key, self.files, work)


def _digest(hashes: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _job(
    case: Case,
    task: Task,
    channel_order: Sequence[int],
    to_mm: Spacing | None,
    folder: Path,
    memory: Path | None,
) -> _Job:
    images = [sha256(path) for path in case.images]
    hashes = {
        "image_sha256": images[0] if len(images) == 1 else _digest(images),
        "label_sha256": sha256(case.label) if case.label else None,
    }
    described = task.model_dump(mode="json", include={"channels", "classes", "ignore"})
    key = key_of(__name__, case.name, list(channel_order), hashes, described, to_mm)
    names = ("image.npy", "case.json", *(["labels.npy"] if case.label else []))
    folder.mkdir(parents=True)
    files = [folder / name for name in names]
    return _Job(case, task, channel_order, to_mm, hashes, key, files, memory)


def _write_case(job: _Job, folder: Path) -> dict[str, Any]:
    """Write the files of a case; its fingerprint."""
    case, task, order = job.case, job.task, list(job.channel_order)
    scan = read_scan(case, len(task.channels))
    ras, affine_ras = to_ras(scan.array, scan.affine)
    air_C = air_values(np.moveaxis(ras, 3, 0)[order])
    subtracted_C: npt.NDArray[np.float64] | None = air_C
    labels_ras = None
    if case.label:
        truth = read_labels(case.label, like=scan, codes=task.labels_of_codes)
        labels_ras = to_ras(truth.array, scan.affine)[0]
    own_mm = spacing_mm(affine_ras)
    if job.to_mm and not np.allclose(own_mm, job.to_mm, rtol=0, atol=SAME_MM):
        shape_vox = shape_at(ras.shape[:3], own_mm, job.to_mm)
        image_CIJK = resample_scan(
            [ras[..., c] - air for c, air in zip(order, air_C, strict=True)], own_mm, job.to_mm
        )
        if labels_ras is not None:
            labels_ras = resample_labels(labels_ras, own_mm, shape_vox, job.to_mm)
        affine_ras = affine_at(affine_ras, ras.shape[:3], shape_vox, job.to_mm)
        ras, order, subtracted_C = np.moveaxis(image_CIJK, 0, 3), list(range(len(order))), None
    inside = body_of(
        np.moveaxis(ras, 3, 0)[order],
        np.zeros(len(order)) if subtracted_C is None else subtracted_C,
        case.image,
    )
    whole = bool(inside.all())
    counts = None
    if labels_ras is not None:
        counts = voxels_per_label(labels_ras, len(task.classes))
        inside |= labels_ras > 0
    box = Box.around(inside)
    image_IJKC = small_type(ras[box.slices], order, case.image, subtracted_C)
    statistics = foreground_statistics(image_IJKC)
    np.save(folder / "image.npy", image_IJKC)
    if labels_ras is not None:
        np.save(folder / "labels.npy", np.asfortranarray(labels_ras[box.slices]))
    values = {
        "format": FORMAT,
        "name": case.name,
        "file_affine": scan.affine.tolist(),
        "file_shape_vox": list(scan.shape_vox),
        "affine_ras": affine_ras.tolist(),
        "ras_shape_vox": list(ras.shape[:3]),
        "spacing_mm": list(spacing_mm(affine_ras)),
        "box": box_to_json(box),
        "channels": list(task.channel_names),
        "air_C": air_C.tolist(),
        **{key: values.tolist() for key, values in statistics.items()},
        "voxels_per_label": counts and list(counts),
        **job.hashes,
    }
    write_json(folder / "case.json", values)
    found = case_fingerprint(scan, image_IJKC, spacing_mm(affine_ras), task, statistics, counts)
    air = dict(zip(task.channel_names, air_C.tolist(), strict=True))
    return found | {"air": air, "whole": whole}


def read_scan(case: Case, channels: int) -> Scan:
    """A case's scan (I, J, K, C), channels in its files' order. Raises as `read_image`."""
    if len(case.images) == 1:
        return read_image(case.image, channels)
    return read_channels(case.images)


def pool_of(processes: int | None = None) -> ProcessPoolExecutor | None:
    """A pool of processes, by default one a core; None without /dev/shm, which they need."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the progress bar's thread
    try:
        return ProcessPoolExecutor(processes, context)
    except OSError:
        return None


@contextmanager
def killed_as_error() -> Iterator[None]:
    """Turn the end of a pool's process into an error of ours.

    Raises:
        DataError: a process was killed.
    """
    try:
        yield
    except BrokenProcessPool:
        do = "if memory is short, use fewer cores: taskset --cpu-list 0,1 COMMAND"
        raise DataError("a process of prepare was killed", do=do) from None
