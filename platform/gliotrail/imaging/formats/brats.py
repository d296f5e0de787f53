"""BraTS' folders into the Decathlon's layout: one 4-D file a scan, RAS+, the Decathlon's labels.

Names of 2017 to 2021 end in `_t1`, `_t1ce`, `_t2`, `_flair`, `_seg`, those from 2023 on in `-t1n`,
`-t1c`, `-t2w`, `-t2f`, `-seg`; each generation has its own label codes (see `labels.SCHEMES`).
"""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gliotrail.errors import DataError
from gliotrail.files import replacing, write_json
from gliotrail.imaging.formats.decathlon import DESCRIPTION, Dataset, check_case_name, read_dataset
from gliotrail.imaging.header import check_same_grid
from gliotrail.imaging.labels import CHANNELS, CLASSES, to_msd
from gliotrail.imaging.nifti import in_ras, read_channels, read_image, write_image
from gliotrail.imaging.prepared import small_type
from gliotrail.progress import progress, say

_SUFFIXES: Final = {
    "brats21": {"FLAIR": "flair", "T1w": "t1", "T1gd": "t1ce", "T2w": "t2"},
    "brats23": {"FLAIR": "t2f", "T1w": "t1n", "T1gd": "t1c", "T2w": "t2w"},
}
_FILE: Final = re.compile(
    r"(.+)(?:_(flair|t1|t1ce|t2|seg)|-(t2f|t1n|t1c|t2w|seg))\.nii(?:\.gz)?", re.IGNORECASE
)
_MOST_AT_ONCE: Final = 4  # a scan being packed takes some 0.4 GB
_NOTICE: Final = """# Imported from BraTS

By `gliotrail data import-brats`. The data's own licence and terms hold for every copy; keep them
with it.

- One 4-D file a scan: FLAIR, T1w, T1gd, T2w. Axes turned to RAS+; no voxel was resampled or scaled.
- Label codes: {codes}.
"""


@dataclass(frozen=True)
class _Patient:
    """One scan's files: the four of CHANNELS, and the labels where there are some."""

    name: str
    scheme: str
    channels: tuple[Path, ...]
    labels: Path | None


def import_brats(source: Path, out: Path) -> Dataset:
    """Write every scan below `source` to the new folder `out`; it appears whole or not at all.

    Those without labels become `imagesTs`.

    Raises:
        DataError: `out` exists; no scans in `source`, one without all its channels or of a name
            that comes twice; files that can't be read or don't lie on one grid; unknown codes.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError("folder", where=out, wanted="a new one", got="something that is there")
    patients = _patients(source)
    at_once = min(os.cpu_count() or 1, _MOST_AT_ONCE)
    with replacing(out) as partial, progress(len(patients), "import", "scans") as advance:
        with ThreadPoolExecutor(at_once) as pool:
            jobs = [pool.submit(_import, patient, partial) for patient in patients]
            try:
                for job in jobs:
                    job.result()
                    advance(1)
            finally:
                pool.shutdown(cancel_futures=True)
        _describe(patients, partial)
        read_dataset(partial)
    return read_dataset(out)


def _patients(source: Path) -> list[_Patient]:
    found: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    strange = []
    for path in sorted(source.rglob("*.nii*")):
        match = _FILE.fullmatch(path.name)
        if path.name.startswith("._") or not path.is_file():
            continue
        if match is None:
            strange.append(path)
            continue
        name, old, new = match.groups()
        files, kind = found[path.parent, name], f"_{old}" if old else f"-{new}"
        if kind.lower() in files:
            raise DataError("file", where=path, wanted="each once", got=files[kind.lower()])
        files[kind.lower()] = path
    if not found:
        wanted = "NAME_flair.nii.gz or NAME-t2f.nii.gz, .. in it or below"
        raise DataError("no BraTS scans", where=source, wanted=wanted)
    if strange:
        say(f"passed over {len(strange)} files of other names, such as {strange[0]}")
    patients = [_patient(folder, name, files) for (folder, name), files in found.items()]
    patients.sort(key=lambda patient: patient.name)
    for one, other in itertools.pairwise(patients):
        if one.name == other.name:
            where, got = other.channels[0].parent, one.channels[0].parent
            raise DataError(f"{one.name}: scan", where=where, wanted="each once", got=f"also {got}")
    return patients


def _patient(folder: Path, name: str, files: dict[str, Path]) -> _Patient:
    check_case_name(name, where=folder)
    mark, scheme = ("-", "brats23") if any(k.startswith("-t") for k in files) else ("_", "brats21")
    suffixes = {channel: mark + _SUFFIXES[scheme][channel] for channel in CHANNELS}
    missing = [name + suffix for suffix in suffixes.values() if suffix not in files]
    if missing:
        wanted, got = "four channels", f"no {', '.join(missing)}"
        raise DataError(f"{name}: files", where=folder, wanted=wanted, got=got)
    channels = tuple(files[suffix] for suffix in suffixes.values())
    return _Patient(name, scheme, channels, files.get(f"{mark}seg"))


def _import(patient: _Patient, out: Path) -> None:
    scan = in_ras(read_channels(patient.channels))
    image = small_type(scan.array, range(len(CHANNELS)), patient.channels[0].parent)
    write_image(out / _image(patient), image, scan.affine)
    if patient.labels is not None:
        truth = in_ras(read_image(patient.labels, channels=1))
        check_same_grid(truth.header, scan.header)
        labels = to_msd(truth.array[..., 0], patient.scheme, where=patient.labels)
        write_image(out / _labels(patient), labels, scan.affine)


def _image(patient: _Patient) -> str:
    return f"images{'Ts' if patient.labels is None else 'Tr'}/{patient.name}.nii.gz"


def _labels(patient: _Patient) -> str:
    return f"labelsTr/{patient.name}.nii.gz"


def _describe(patients: Sequence[_Patient], out: Path) -> None:
    labelled = [patient for patient in patients if patient.labels is not None]
    unlabelled = [patient for patient in patients if patient.labels is None]
    description = {
        "name": "BraTS",
        "tensorImageSize": "4D",
        "modality": {str(n): name for n, name in enumerate(CHANNELS)},
        "labels": {str(n): name for n, name in enumerate(("background", *CLASSES))},
        "numTraining": len(labelled),
        "numTest": len(unlabelled),
        "training": [{"image": f"./{_image(p)}", "label": f"./{_labels(p)}"} for p in labelled],
        "test": [f"./{_image(p)}" for p in unlabelled],
    }
    write_json(out / DESCRIPTION, description)
    codes = {
        "brats21": "1 became 2, 2 became 1, 4 became 3 (BraTS 2017 to 2021)",
        "brats23": "1 became 2, 2 became 1 (BraTS from 2023 on)",
    }
    schemes = sorted({patient.scheme for patient in patients})
    notice = _NOTICE.format(codes="; ".join(codes[scheme] for scheme in schemes))
    (out / "PROVENANCE.md").write_text(notice, encoding="utf-8")
