"""BIDS: `sub-01[/ses-02]/anat/sub-01_.._FLAIR.nii.gz`, labels below `derivatives`.

See bids-specification.readthedocs.io: a file's suffix (T1w, T2w, FLAIR, ..) is its channel, with
`ce-` for a contrast agent; labels are `_dseg` (codes, named by a `dseg.tsv`) or `_mask`.
"""

import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import Final

import numpy as np

from gliotrail.dataset.brats import channel_name
from gliotrail.dataset.task import Channel, Class, Task, as_name
from gliotrail.errors import DataError
from gliotrail.imaging.formats.decathlon import Dataset
from gliotrail.imaging.formats.importing import Found, write_found
from gliotrail.imaging.nifti import read_image
from gliotrail.progress import say

_SCAN: Final = re.compile(
    r"(sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?(_.*)?_([A-Za-z0-9]+)\.nii(\.gz)?"
)
_LABELS: Final = {"dseg", "mask"}
_NOTICE: Final = """# Imported from BIDS

By `gliotrail data import`. The data's own licence and terms hold for every copy; keep them with it.

- One file a scan: {channels}. Axes turned to RAS+; no voxel was resampled or scaled.
- Labels: {labels}.
"""


def is_bids(source: Path) -> bool:
    """Whether a folder says so, or is laid out like it."""
    return (source / "dataset_description.json").is_file() or any(source.glob("sub-*/**/anat"))


def import_bids(source: Path, out: Path) -> Dataset:
    """Write every anatomical scan to the new folder `out`; it appears whole or not at all.

    Raises:
        DataError: as `write_found`; no scans, a scan without a channel that others have, two files
            for one channel or for one scan's labels, labels without their scan.
    """
    scans = _files(source, [*source.glob("sub-*/anat/*"), *source.glob("sub-*/ses-*/anat/*")])
    labels = _files(source, sorted((source / "derivatives").glob("**/anat/*.nii*")), _LABELS)
    if not scans:
        raise DataError("no BIDS scans", where=source, wanted="sub-NAME/anat/sub-NAME_T1w.nii.gz")
    names = sorted({channel for files in scans.values() for channel in files})
    found = []
    for (patient, session), files in sorted(scans.items()):
        if missing := [name for name in names if name not in files]:
            where, got = next(iter(files.values())).parent, f"no {', '.join(missing)}"
            raise DataError(f"{patient}{session}: channels", where=where,
                            wanted=", ".join(names), got=got)  # fmt: skip
        truth = list(labels.get((patient, session), {}).values())
        channels = tuple(files[name] for name in names)
        found.append(Found(patient + session, channels, truth[0] if truth else None))
    if strange := sorted(labels.keys() - scans.keys()):
        path = next(iter(labels[strange[0]].values()))
        wanted = f"a scan of {''.join(strange[0])} in {source / strange[0][0]}"
        raise DataError(f"{len(strange)} labels without their scans", where=path, wanted=wanted)
    if lost := [one.name for one in found if one.labels is None]:
        say(f"{len(lost)} scans without labels in derivatives, such as {lost[0]}")
    classes = _classes(source, [one.labels for one in found if one.labels])
    task = Task(
        name=source.name, channels=tuple(Channel(name=name) for name in names), classes=classes
    )
    meanings = ", ".join(f"{one.code} is {one.name}" for one in classes)
    notice = _NOTICE.format(channels=", ".join(names), labels=meanings)
    return write_found(found, task, task.labels_of_codes, out, notice)


def _files(
    source: Path, paths: list[Path], suffixes: set[str] | None = None
) -> dict[tuple[str, str], dict[str, Path]]:
    """Files by scan (patient, session) and channel, or only those of the suffixes."""
    found: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    for path in sorted(paths):
        match = _SCAN.fullmatch(path.name)
        if match is None or (match[4] in _LABELS) != bool(suffixes):
            continue
        patient, session, entities, suffix, _ = match.groups()
        contrast = re.search(r"_ce-[A-Za-z0-9]+", entities or "") and suffix == "T1w"
        channel = "labels" if suffixes else as_name(channel_name("T1gd" if contrast else suffix))
        files = found[patient, session or ""]
        if channel in files:
            got = f"also {files[channel].relative_to(source)}"
            raise DataError(f"{patient}: {channel}", where=path, wanted="one file", got=got,
                            do="leave one of them")  # fmt: skip
        files[channel] = path
    return found


def _classes(source: Path, labels: list[Path]) -> tuple[Class, ...]:
    """By `dseg.tsv` where there is one, by the mask's `label-` entity, else by the codes' numbers.

    Raises:
        DataError: no labels at all, or none but background.
    """
    tables = sorted(source.glob("derivatives/**/*dseg.tsv")) + sorted(source.glob("*dseg.tsv"))
    names: dict[int, str] = {}
    if tables:
        with tables[0].open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                names[int(row["index"])] = as_name(row["name"])
    codes = sorted(
        {int(c) for path in labels for c in np.unique(read_image(path, channels=1).array).round()}
        | set(names)
    )
    mask = re.search(r"_label-([A-Za-z0-9]+)", labels[0].name) if labels else None
    if [code for code in codes if code] == [1] and mask and not names:
        names = {1: mask[1]}
    found = tuple(Class(name=names.get(c, f"label_{c}"), code=c) for c in codes if c > 0)
    if not found:
        raise DataError("labels", where=source / "derivatives", wanted="_dseg or _mask files",
                        got="none but background")  # fmt: skip
    return found
