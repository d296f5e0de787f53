"""The Decathlon's layout: a folder of `dataset.json`, `imagesTr/`, `labelsTr/` and `imagesTs/`."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gliotrail.errors import DataError
from gliotrail.imaging.labels import CLASSES, channel_order

DESCRIPTION = "dataset.json"
_LARGEST_DESCRIPTION_BYTES = 20_000_000
_LONGEST_PATH = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Case:
    """One patient's files. `label` is None where nobody has drawn one."""

    name: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """A folder in the Decathlon's layout.

    channel_order: where each of `labels.CHANNELS` is in a file's fourth axis.
    cases: sorted by name; those of `training` and, without a label, of `test`.
    """

    root: Path
    channel_order: tuple[int, ...]
    cases: tuple[Case, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The description and every file that it lists."""
        listed = [path for case in self.cases for path in (case.image, case.label) if path]
        return (self.root / DESCRIPTION, *listed)


def read_dataset(root: Path) -> Dataset:
    """Read `dataset.json` and check that what it lists is there. Opens no scan.

    `._*` files (which macOS leaves beside real ones) are passed over.

    Raises:
        DataError: no description, or one that is not as it must be: channels or classes other
            than `labels` knows, two cases of a name, a path that leads out of the folder, a listed
            file that is missing, a label without its image, no case at all.
    """
    where = root / DESCRIPTION
    values = _read_json(where)
    names = _numbered(values.get("modality"), "modality", where)
    order = channel_order(names, where)
    _check_classes(_numbered(values.get("labels"), "labels", where), where)
    cases = sorted(_cases(root, values, where), key=lambda case: case.name)
    if not cases:
        raise DataError("cases", where=where, wanted="at least one in training", got="none")
    _check_stray_labels(root, {case.label for case in cases})
    return Dataset(root, order, tuple(cases))


def check_case_name(name: str, where: object) -> None:
    """Refuse a name that could not be a folder's and a picture's.

    Raises:
        DataError: naming it.
    """
    if not _NAME.fullmatch(name):
        wanted = "letters, digits and . _ - (up to 100)"
        raise DataError("case name", where=where, wanted=wanted, got=repr(name))


def _read_json(where: Path) -> Mapping[str, Any]:
    if not where.is_file():
        raise DataError("no such file", where=where, do="a folder in the MSD layout is wanted")
    if where.stat().st_size > _LARGEST_DESCRIPTION_BYTES:
        raise DataError("bytes", where=where, wanted=f"at most {_LARGEST_DESCRIPTION_BYTES}")
    try:
        values = json.loads(where.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", where=where, got=str(error)) from None
    if not isinstance(values, dict):
        raise DataError("content", where=where, wanted="a JSON object", got=type(values).__name__)
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key that is there twice")
    return values


def _numbered(values: Any, key: str, where: Path) -> list[str]:
    """{"0": "FLAIR", "1": "T1w"} -> [FLAIR, T1w]."""
    wanted = [str(n) for n in range(len(values))] if isinstance(values, dict) else []
    if not wanted or sorted(values) != sorted(wanted) or not _all_text(values.values()):
        raise DataError(key, where=where, wanted='names numbered "0", "1", ..', got=_short(values))
    return [values[n] for n in wanted]


def _all_text(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _check_classes(names: list[str], where: Path) -> None:
    """The label names, however hyphened and whichever English, must be in the usual order."""
    plain = [re.sub(r"[\s_-]+", "_", name.strip().lower()) for name in names]
    got = [re.sub(r"_tumou?r$", "", name).replace("oedema", "edema") for name in plain]
    wanted = ["background", *CLASSES]
    if got != wanted:
        raise DataError("labels", where=where, wanted=", ".join(wanted), got=", ".join(names))


def _cases(root: Path, values: Mapping[str, Any], where: Path) -> Iterable[Case]:
    seen: set[str] = set()
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
            name = image.name.removesuffix(".gz").removesuffix(".nii")
            check_case_name(name, where)
            if name.lower() in seen:  # some disks don't tell A from a
                raise DataError("case names", where=where, wanted="each once", got=f"{name} twice")
            seen.add(name.lower())
            for path in filter(None, (image, label)):
                if not path.is_file():
                    raise DataError("no such file", where=path, do=f"{where} lists it")
            yield Case(name, image, label)


def _inside(root: Path, text: Any, where: Path) -> Path:
    """A listed path, which must stay inside the folder. (DVC may have made it a link.)"""
    path = PurePosixPath(text) if isinstance(text, str) else PurePosixPath("/")
    bad = path.is_absolute() or ".." in path.parts or "\0" in str(path)
    if bad or len(str(path)) > _LONGEST_PATH:
        raise DataError("path", where=where, wanted="one inside this folder", got=_short(text))
    return root / path


def _check_stray_labels(root: Path, listed: set[Path | None]) -> None:
    for path in sorted((root / "labelsTr").glob("*.nii*")):
        image = root / "imagesTr" / path.name
        if not (path.name.startswith("._") or path in listed or image.is_file()):
            raise DataError("a label without its image", where=path, wanted=image, got="no file")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
