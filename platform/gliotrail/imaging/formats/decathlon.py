"""A data set's folder, as the Decathlon or nnU-Net lays it out: which cases it has, in which files.

`dataset.json` says what is segmented (see `dataset.description`). The Decathlon lists its cases in
`training` and `test`, a file each; nnU-Net has one file a channel, `imagesTr/CASE_0000.nii.gz`, and
`labelsTr/CASE.nii.gz`, and lists nothing. Where no case is listed, all files there are cases.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gliotrail.dataset.description import DESCRIPTION, read_json, task_of
from gliotrail.dataset.task import Task
from gliotrail.errors import DataError

_LONGEST_PATH = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """One scan's files. `label` is None where the scan has no labels.

    images: one file of all channels, or one a channel in the order of the task's.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def image(self) -> Path:
        """The file whose grid the case has."""
        return self.images[0]


@dataclass(frozen=True)
class Dataset:
    """A folder of scans.

    channel_order: where each of the task's channels is in a file's fourth axis.
    cases: sorted by name; those without a label are not trained on.
    """

    root: Path
    task: Task
    channel_order: tuple[int, ...]
    cases: tuple[Case, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The description and every file that it lists."""
        listed = [p for case in self.cases for p in (*case.images, case.label) if p]
        return (self.root / DESCRIPTION, *listed)


def read_dataset(root: Path) -> Dataset:
    """Read `dataset.json` and check that what it lists is there. Opens no scan.

    `._*` files (which macOS leaves beside real ones) are passed over.

    Raises:
        DataError: no description, or one that is not as it must be: channels, classes or regions
            that don't fit, two cases of a name, a path that leads out of the folder, a listed
            file that is missing, a channel without its file, a label without its image, no case.
    """
    where = root / DESCRIPTION
    values = read_json(where)
    task, order = task_of(values, where)
    if task.file_ending not in _ENDINGS:
        wanted, do = " or ".join(_ENDINGS), "convert the files, for example with SimpleITK"
        raise DataError("file_ending", where=where, wanted=wanted, got=task.file_ending, do=do)
    listed = "training" in values or "test" in values
    found = _listed(root, values, where) if listed else _lying_there(root, task, order, where)
    cases = sorted(found, key=lambda case: case.name)
    if not cases:
        raise DataError("cases", where=where, wanted="at least one for training", got="none")
    lower = [case.name.lower() for case in cases]  # some disks don't tell A from a
    for case in cases:
        check_case_name(case.name, where)
        if lower.count(case.name.lower()) > 1:
            raise DataError("case names", where=where, wanted="each once", got=f"{case.name} twice")
    _check_stray_labels(root, cases)
    return Dataset(root, task, order, tuple(cases))


def check_case_name(name: str, where: object) -> None:
    """Refuse a name that can't be the name of a folder and of a picture.

    Raises:
        DataError: naming it.
    """
    if not _NAME.fullmatch(name):
        wanted = "letters, digits and . _ - (up to 100)"
        raise DataError("case name", where=where, wanted=wanted, got=repr(name))


def _listed(root: Path, values: Mapping[str, Any], where: Path) -> Iterable[Case]:
    """The cases that a Decathlon description lists."""
    for key in ("training", "test"):
        entries = values.get(key, [])
        if not isinstance(entries, list):
            raise DataError(key, where=where, wanted="a list", got=_short(entries))
        for entry in entries:
            files = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(files, dict) or "image" not in files:
                raise DataError(f"{key} entry", where=where, wanted="an image", got=_short(entry))
            image = _inside(root, files["image"], where)
            label = None if "label" not in files else _inside(root, files["label"], where)
            check_case_name(_stem(image), where)
            for path in filter(None, (image, label)):
                if not path.is_file():
                    raise DataError("no such file", where=path, do=f"{where} lists it")
            yield Case(_stem(image), (image,), label)


def _lying_there(root: Path, task: Task, order: Sequence[int], where: Path) -> Iterable[Case]:
    """The cases in nnU-Net's layout: a file a channel, or one 4-D file a case, and the label."""
    end = task.file_ending
    for folder, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        paths = [p for p in sorted((root / folder).glob(f"*{end}")) if not p.name.startswith("._")]
        apart = [re.fullmatch(r"(.+)_(\d{4})", _stem(path)) for path in paths]
        if any(apart) and not all(apart):
            odd = next(p for p, match in zip(paths, apart, strict=True) if not match)
            wanted = f"CASE_0000{end}, as the files beside it"
            raise DataError("file name", where=odd, wanted=wanted, got=odd.name)
        if all(apart) and apart:
            files: dict[str, dict[int, Path]] = {}
            for path, match in zip(paths, apart, strict=True):
                assert match
                files.setdefault(match[1], {})[int(match[2])] = path
            numbers = range(len(task.channels))
            for name, of in files.items():
                if missing := [n for n in numbers if n not in of]:
                    wanted = f"{len(numbers)} files, one a channel"
                    got = f"no {name}_{missing[0]:04d}{end}"
                    raise DataError(f"{name}: files", where=root / folder, wanted=wanted, got=got)
        else:
            files = {_stem(path): {0: path} for path in paths}
        for name, of in files.items():
            label = root / labels / f"{name}{end}"
            if folder == "imagesTr" and not label.is_file():
                raise DataError(f"{name}: label", where=label, wanted="a file", got="none",
                                do="scans without labels belong into imagesTs")  # fmt: skip
            images = tuple(of[n] for n in order) if len(of) > 1 else (of[0],)
            yield Case(name, images, label if label.is_file() else None)
    if not (root / "imagesTr").is_dir():
        raise DataError("no such folder", where=root / "imagesTr", do=f"{where} lists no cases")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _inside(root: Path, text: Any, where: Path) -> Path:
    """A listed path, which must stay inside the folder. (DVC may have made it a link.)"""
    path = PurePosixPath(text) if isinstance(text, str) else PurePosixPath("/")
    bad = path.is_absolute() or ".." in path.parts or "\0" in str(path)
    if bad or len(str(path)) > _LONGEST_PATH:
        raise DataError("path", where=where, wanted="one inside this folder", got=_short(text))
    return root / path


def _check_stray_labels(root: Path, cases: Sequence[Case]) -> None:
    listed = {case.label for case in cases}
    for path in sorted((root / "labelsTr").glob("*.nii*")):
        image = root / "imagesTr" / path.name
        if not (path.name.startswith("._") or path in listed or image.is_file()):
            raise DataError("a label without its image", where=path, wanted=image, got="no file")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
