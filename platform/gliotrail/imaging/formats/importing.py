"""Other layouts into the Decathlon's: one 4-D file a scan in RAS+, the data set's labels beside.

Each layout has a module that finds its scans; here they are written, whole or not at all.
"""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gliotrail.dataset.description import DESCRIPTION
from gliotrail.dataset.task import Task
from gliotrail.errors import DataError
from gliotrail.files import check_free, replacing
from gliotrail.imaging.formats.decathlon import Dataset, check_case_name, read_dataset
from gliotrail.imaging.header import check_same_grid
from gliotrail.imaging.labels import to_labels
from gliotrail.imaging.nifti import in_ras, read_channels, read_image, write_image
from gliotrail.imaging.voxel_values import small_type
from gliotrail.progress import progress

_MOST_AT_ONCE: Final = 4  # a scan being packed takes some 0.4 GB


@dataclass(frozen=True)
class Found:
    """One scan: a file a channel in the task's order, and its labels where there are some."""

    name: str
    channels: tuple[Path, ...]
    labels: Path | None


def write_found(
    found: Sequence[Found], task: Task, codes: Mapping[int, int], out: Path, notice: str
) -> Dataset:
    """Write scans to the new folder `out`; those without labels become `imagesTs`.

    Args:
        found: the scans.
        task: what `dataset.json` says; labels are written as the task's.
        codes: of the label files as they are -> labels.
        out: the folder to make; it appears whole or not at all.
        notice: the text of its PROVENANCE.md.

    Raises:
        DataError: `out` exists; a name that comes twice or could be no file's; files that can't be
            read or don't lie on one grid; unknown codes.
    """
    check_free(out)
    found = sorted(found, key=lambda one: one.name)
    for one in found:
        check_case_name(one.name, where=one.channels[0].parent)
    for one, other in itertools.pairwise(found):
        if one.name == other.name:
            where, got = other.channels[0].parent, one.channels[0].parent
            raise DataError(f"{one.name}: scan", where=where, wanted="each once", got=f"also {got}")
    at_once = min(os.cpu_count() or 1, _MOST_AT_ONCE)
    with replacing(out) as partial, progress(len(found), "import", "scans") as advance:
        with ThreadPoolExecutor(at_once) as pool:
            jobs = [pool.submit(_write, one, codes, partial) for one in found]
            try:
                for job in jobs:
                    job.result()
                    advance(1)
            finally:
                pool.shutdown(cancel_futures=True)
        # not sorted by name: the order of regions counts
        described = json.dumps(_description(found, task), indent=1)
        (partial / DESCRIPTION).write_text(described + "\n", encoding="utf-8")
        (partial / "PROVENANCE.md").write_text(notice, encoding="utf-8")
        read_dataset(partial)
    return read_dataset(out)


def _write(found: Found, codes: Mapping[int, int], out: Path) -> None:
    scan = in_ras(read_channels(found.channels))
    image = small_type(scan.array, range(len(found.channels)), found.channels[0].parent)
    if len(found.channels) == 1:
        image = image[..., 0]
    write_image(out / _image(found), image, scan.affine)
    if found.labels is not None:
        truth = in_ras(read_image(found.labels, channels=1))
        check_same_grid(truth.header, scan.header)
        labels = to_labels(truth.array[..., 0], codes, where=found.labels)
        write_image(out / _labels(found), labels, scan.affine)


def _image(found: Found) -> str:
    return f"images{'Ts' if found.labels is None else 'Tr'}/{found.name}.nii.gz"


def _labels(found: Found) -> str:
    return f"labelsTr/{found.name}.nii.gz"


def _description(found: Sequence[Found], task: Task) -> dict[str, Any]:
    """`dataset.json` in the Decathlon's dialect, codes as the labels were written."""
    labelled = [one for one in found if one.labels is not None]
    unlabelled = [one for one in found if one.labels is None]
    names = ("background", *task.class_names)
    values: dict[str, Any] = {
        "name": task.name,
        "licence": task.licence,
        "reference": task.reference,
        "tensorImageSize": "4D" if len(task.channels) > 1 else "3D",
        "modality": {str(n): name for n, name in enumerate(task.channel_names)},
        "channel_kinds": {str(n): channel.kind for n, channel in enumerate(task.channels)},
        "labels": {str(n): name for n, name in enumerate(names)},
        "numTraining": len(labelled),
        "numTest": len(unlabelled),
        "training": [
            {"image": f"./{_image(one)}", "label": f"./{_labels(one)}"} for one in labelled
        ],
        "test": [f"./{_image(one)}" for one in unlabelled],
    }
    if task.regions:
        values["regions"] = {region.name: list(region.labels) for region in task.regions}
        values["regions_class_order"] = [region.written for region in task.regions]
    return values
