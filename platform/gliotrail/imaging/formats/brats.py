"""BraTS' folders, 2015 to 2024, and Kaggle's copies of them: which scans there are, in which codes.

Files of 2017 to 2021 end in `_t1`, `_t1ce`, `_t2`, `_flair`, `_seg`, those from 2023 on in `-t1n`,
`-t1c`, `-t2w`, `-t2f`, `-seg`. Label codes differ from release to release and follow from the
scheme, or from folder names that only one release uses; they are never guessed from the values.
Kaggle's copy of 2021 has a folder NAME_flair.nii with one file of another name in it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from gliotrail.dataset.brats import BRATS, SCHEMES, scheme_task
from gliotrail.errors import DataError, ParamsError
from gliotrail.imaging.formats.decathlon import Dataset, check_case_name
from gliotrail.imaging.formats.importing import Found, write_found
from gliotrail.progress import say

Cavity = Literal["class", "background"]
_SUFFIXES: Final = {
    "_": {"FLAIR": "flair", "T1w": "t1", "T1gd": "t1ce", "T2w": "t2"},
    "-": {"FLAIR": "t2f", "T1w": "t1n", "T1gd": "t1c", "T2w": "t2w"},
}
_FILE: Final = re.compile(
    r"(.+)(?:_(flair|t1|t1ce|t2|seg)|-(t2f|t1n|t1c|t2w|seg))\.nii(?:\.gz)?", re.IGNORECASE
)
_RELEASES: Final = {
    "brats21": r"brats(17|18|19|20|2021)_.*",
    "brats23": r"brats-(gli|ssa)-\d+-0\d\d|brats-(met|men)-.*",
    "brats24-gli": r"brats-gli-\d+-1\d\d",
}
"""Names of scans that only one release uses. 2023 and 2024 share BraTS-PED."""
_NOTICE: Final = """# Imported from BraTS

By `gliotrail data import`. The data's own licence and terms hold for every copy; keep them with it.

- One 4-D file a scan: FLAIR, T1w, T1gd, T2w. Axes turned to RAS+; no voxel was resampled or scaled.
- Label codes: {codes}.
"""


def import_brats(
    source: Path, out: Path, scheme: str | None = None, cavity: Cavity = "class"
) -> Dataset:
    """Write every scan below `source` to the new folder `out`; it appears whole or not at all.

    Scans without labels become `imagesTs`.

    Args:
        scheme: one of `SCHEMES`; found by the folders' names where only one release uses them.
        cavity: what becomes of the resection cavity of scans after treatment.

    Raises:
        ParamsError: the scheme is not given, and the names don't decide it.
        DataError: as `write_found`; no scans in `source`, one without all its channels, or one
            whose labels have an unknown name.
    """
    found = find_brats(source)
    for one in found:
        check_case_name(one.name, where=one.channels[0].parent)
    labelled = [one for one in found if one.labels]
    known = scheme or _scheme_by_names([one.name for one in labelled], source)
    if others := [o.name for o in labelled if _scheme_of(o.name) not in {None, known}]:
        of = _scheme_of(others[0])
        say(f"--scheme {known} is taken, though {others[0]} is named as in {of}")
    task, codes = scheme_task(known)
    if known == "brats24-gli":
        if cavity == "background":
            task, codes = BRATS, {**codes, 4: 0}
        became = "background" if cavity == "background" else "a class of its own, resection_cavity"
        say(f"the resection cavity (code 4) is {became}; --cavity says otherwise")
    return write_found(found, task, codes, out, _NOTICE.format(codes=_codes_text(known, codes)))


def _scheme_by_names(names: Sequence[str], source: Path) -> str:
    """The one scheme of all these labelled scans; any scheme if there are no scans.

    Raises:
        ParamsError: a name that several releases use, or scans of several releases.
    """
    by_scheme: dict[str | None, list[str]] = defaultdict(list)
    for name in names:
        by_scheme[_scheme_of(name)].append(name)
    if not by_scheme:
        return "brats23"
    unknown = by_scheme.pop(None, [])
    seen = [f"{len(of)} as {of[0]}, of {s}" for s, of in sorted(by_scheme.items(), key=str)]
    if len(by_scheme) == 1 and not unknown:
        return str(*by_scheme)
    if unknown:
        seen.insert(0, f"{len(unknown)} as {unknown[0]}, whose name shows no release")
    do = "import each release by itself" if seen[1:] else "say --scheme"
    do += ", with --scheme where no name shows it" if seen[1:] and unknown else ""
    wanted = f"scans of one of {', '.join(name for name in SCHEMES if name != 'msd')}"
    raise ParamsError("label codes", where=source, wanted=wanted, got="; ".join(seen), do=do)


def find_brats(source: Path) -> list[Found]:
    """Every scan below `source`.

    Raises:
        DataError: as `import_brats`.
    """
    found: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    strange = []
    for path in sorted(source.rglob("*.nii*")):
        file = _inside(path)
        if file is None or path.name.startswith("._") or _FILE.fullmatch(path.parent.name):
            continue
        match = _FILE.fullmatch(path.name)
        if match is None:
            strange.append(path)
            continue
        name, old, new = match.groups()
        files, kind = found[path.parent, name], f"_{old}" if old else f"-{new}"
        if kind.lower() in files:
            raise DataError("file", where=path, wanted="each once", got=files[kind.lower()])
        files[kind.lower()] = file
    if not found:
        wanted = "NAME_flair.nii.gz or NAME-t2f.nii.gz, .. in it or below"
        raise DataError("no BraTS scans", where=source, wanted=wanted)
    scans = [_scan(folder, name, files) for (folder, name), files in found.items()]
    _check_labels(scans, [folder for folder, _ in found], strange)
    if strange:
        say(f"passed over {len(strange)} files of other names, such as {strange[0]}")
    return scans


def _inside(path: Path) -> Path | None:
    """The file itself, or the one file in a folder of a file's name (Kaggle); None for others."""
    if path.is_file():
        return path
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    return files[0] if len(files) == 1 and _FILE.fullmatch(path.name) else None


def _scan(folder: Path, name: str, files: Mapping[str, Path]) -> Found:
    mark = "-" if any(kind.startswith("-t") for kind in files) else "_"
    kinds = {channel: mark + _SUFFIXES[mark][channel] for channel in BRATS.channel_names}
    missing = [name + kind for kind in kinds.values() if kind not in files]
    if missing:
        wanted, got = "four channels", f"no {', '.join(missing)}"
        raise DataError(f"{name}: files", where=folder, wanted=wanted, got=got)
    channels = tuple(files[kind] for kind in kinds.values())
    return Found(name, channels, files.get(f"{mark}seg"))


def _check_labels(scans: Sequence[Found], folders: Sequence[Path], strange: Sequence[Path]) -> None:
    """A scan that lies beside a file of an unknown name may have its labels there."""
    lost = [
        (scan.name, path)
        for scan, folder in zip(scans, folders, strict=True)
        for path in strange
        if scan.labels is None and path.parent == folder
    ]
    if lost and any(scan.labels for scan in scans):
        names = "; ".join(f"{name} beside {path.name}" for name, path in lost[:5])
        raise DataError(
            f"{len(lost)} scans without labels",
            where=lost[0][1],
            wanted="NAME_seg.nii.gz or NAME-seg.nii.gz",
            got=names,
            do=f"if these are its labels, rename them to {lost[0][0]}_seg; else move them away",
        )


def _scheme_of(name: str) -> str | None:
    """The scheme of the only release that names scans so; None where there are several."""
    return next(
        (s for s, names in _RELEASES.items() if re.fullmatch(names, name, re.IGNORECASE)), None
    )


def _codes_text(scheme: str, codes: Mapping[int, int]) -> str:
    """Which codes became which, for the notice."""
    changed = ", ".join(f"{code} became {label}" for code, label in codes.items() if code != label)
    return f"{changed or 'as they were'} ({scheme})"
