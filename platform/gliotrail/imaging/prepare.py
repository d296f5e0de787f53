"""Stage `prepare`: every case checked once, then one memory-mappable array a case.

What a prepared case is, and how it is read: see `prepared`.
"""

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gliotrail import params
from gliotrail.errors import DataError
from gliotrail.files import replacing, sha256, write_json
from gliotrail.imaging.case_cache import at_a_time, forget_others, key_of, linked, made
from gliotrail.imaging.fingerprint import case_fingerprint, dataset_fingerprint
from gliotrail.imaging.formats.decathlon import Case, Dataset, read_dataset
from gliotrail.imaging.geometry import Box, Vox3, by_mm, same_spacing, spacing_mm, to_ras, vox3
from gliotrail.imaging.header import check_channels, check_same_grid, read_header
from gliotrail.imaging.labels import CHANNELS, voxels_per_label
from gliotrail.imaging.nifti import read_image, read_labels
from gliotrail.imaging.prepared import FORMAT, brain_statistics, small_type
from gliotrail.imaging.split import (
    box_to_json,
    make_split,
    split_to_json,
)
from gliotrail.progress import progress

_PEAK_BYTES_PER_VALUE = 20  # of a process; measured on 240x240x155x4: 7 float32, 18 scaled int16


def prepare(
    section: params.Prepare,
    raw: Path,
    out: Path,
    processes: int | None = None,
    memory: Path | None = None,
) -> None:
    """Check every case in `raw` and write `fingerprint.json`, `split.json` and `cases/` to `out`.

    Headers of all cases first, so that most mistakes are told within seconds; then the voxels,
    one case at a time in each process. Earlier output stays if a case is bad.

    Args:
        section: the rule of the split.
        raw: a folder in the Decathlon's layout.
        out: the folder to make.
        processes: how many at a time; as many as there are cores and as memory allows if None.
        memory: where each case is kept for the next run (see `kept`); nowhere if None.

    Raises:
        ParamsError: the split, as `make_split`.
        DataError: as `read_dataset`, `read_image`, `read_labels`; a scan of zeros alone.
    """
    dataset = read_dataset(raw)
    shapes_vox, most_values = _check_headers(dataset)
    split = make_split(section.split, shapes_vox)
    processes = processes or at_a_time(len(dataset.cases), _PEAK_BYTES_PER_VALUE * most_values)
    with replacing(out) as new, progress(len(dataset.cases), "prepare", "cases") as advance:
        fingerprints, keys = {}, []
        for name, key, fingerprint in _prepare_all(dataset, new / "cases", processes, memory):
            fingerprints[name] = fingerprint
            keys.append(key)
            advance(1)
        write_json(new / "fingerprint.json", dataset_fingerprint(fingerprints))
        write_json(new / "split.json", split_to_json(split))
    forget_others(memory, keys)


def _check_headers(dataset: Dataset) -> tuple[dict[str, Vox3], int]:
    """Shapes in RAS+ of the labelled cases, and how many values the largest scan has."""
    shapes_vox, most_values, first_mm = {}, 0, None
    for case in dataset.cases:
        header = read_header(case.image)
        check_channels(header, len(CHANNELS))
        most_values = max(most_values, math.prod(header.shape))
        if case.label:
            no_memory = np.broadcast_to(np.uint8(0), header.shape_vox)
            turned, affine = to_ras(no_memory, header.affine)
            shapes_vox[case.name] = vox3(turned.shape)
            own_mm = spacing_mm(affine)
            first_mm = first_mm or own_mm
            if not same_spacing(first_mm, own_mm):  # a network sees voxels, not mm
                wanted = f"that of the other cases, {by_mm(first_mm)}"
                do = "resample one or the other"
                raise DataError(
                    "spacing in RAS+", where=case.image, wanted=wanted, got=by_mm(own_mm), do=do
                )
            label_header = read_header(case.label)
            check_channels(label_header, 1)
            check_same_grid(label_header, header)
    return shapes_vox, most_values


def _prepare_all(
    dataset: Dataset, folder: Path, processes: int, memory: Path | None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each case's name, key and fingerprint, as they are done."""
    order, jobs = dataset.channel_order, []
    for case in dataset.cases:
        job = _job(case, order, folder / case.name, memory)
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
    with pool, killed_is_told():
        running = {pool.submit(job.run): job for job in jobs}
        try:
            for done in as_completed(running):
                yield running[done].case.name, running[done].key, done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Job:
    """A case to prepare: into which files, and under which key they are kept."""

    case: Case
    channel_order: Sequence[int]
    hashes: dict[str, str | None]
    key: str
    files: Sequence[Path]
    memory: Path | None

    def run(self) -> dict[str, Any]:
        """Write the files; the case's fingerprint."""
        folder = self.files[0].parent
        work = partial(_write_case, self.case, self.channel_order, folder, self.hashes)
        return made(self.memory, self.key, self.files, work)


def _job(case: Case, channel_order: Sequence[int], folder: Path, memory: Path | None) -> _Job:
    hashes = {
        "image_sha256": sha256(case.image),
        "label_sha256": sha256(case.label) if case.label else None,
    }
    key = key_of(__name__, case.name, list(channel_order), hashes)
    names = ("image.npy", "case.json", *(["labels.npy"] if case.label else []))
    folder.mkdir(parents=True)
    return _Job(case, channel_order, hashes, key, [folder / name for name in names], memory)


def _write_case(
    case: Case, channel_order: Sequence[int], folder: Path, hashes: dict[str, str | None]
) -> dict[str, Any]:
    """Write the files of a case; its fingerprint."""
    scan = read_image(case.image)
    ras, affine_ras = to_ras(scan.array, scan.affine)
    inside = np.zeros(ras.shape[:3], bool)
    for channel in channel_order:
        inside |= ras[..., channel] != 0
    labels_ras = counts = None
    if case.label:
        labels_ras = to_ras(read_labels(case.label, like=scan).array, scan.affine)[0]
        counts = voxels_per_label(labels_ras)
        inside |= labels_ras > 0
    box = Box.around(inside)
    if 0 in box.size_vox:
        raise DataError("voxel values", where=case.image, wanted="a brain", got="zeros alone")
    image_IJKC = small_type(ras[box.slices], channel_order, case.image)
    statistics = brain_statistics(image_IJKC)
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
        "channels": list(CHANNELS),
        **{key: values.tolist() for key, values in statistics.items()},
        "voxels_per_label": counts and list(counts),
        **hashes,
    }
    write_json(folder / "case.json", values)
    return case_fingerprint(scan, image_IJKC, statistics, counts)


def pool_of(processes: int | None = None) -> ProcessPoolExecutor | None:
    """So many processes, by default one a core; None without /dev/shm, which they need."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the progress bar's thread
    try:
        return ProcessPoolExecutor(processes, context)
    except OSError:
        return None


@contextmanager
def killed_is_told() -> Iterator[None]:
    """Tell that one of a pool was killed.

    Raises:
        DataError: saying what to do.
    """
    try:
        yield
    except BrokenProcessPool:
        do = "if memory is short, use fewer cores: taskset --cpu-list 0,1 COMMAND"
        raise DataError("a process of prepare was killed", do=do) from None
