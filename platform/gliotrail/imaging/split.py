"""Which cases are for training, validation and testing: by patient, never by patch."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gliotrail import params
from gliotrail.dataset.patients import of_same_patients, patient_of
from gliotrail.errors import DataError, ParamsError
from gliotrail.imaging.geometry import Box, Vox3, vox3

_KEY = "prepare.split"


@dataclass(frozen=True)
class Region:
    """A case, or a box of it (voxels of its scan in RAS+)."""

    case: str
    box: Box | None = None

    def box_in(self, shape_vox: Vox3) -> Box:
        """Its box, in a scan of this shape."""
        return self.box or Box((0, 0, 0), shape_vox)


@dataclass(frozen=True)
class Split:
    """Case names by part, sorted; every one is labelled and in one part only.

    validation: whole scans, or one block of a training case.
    kept_out: for training cases, the box that no training patch may touch: the validation block
        grown by its margin.
    """

    training: tuple[str, ...]
    validation: tuple[Region, ...]
    test: tuple[str, ...]
    kept_out: Mapping[str, Box]


def make_split(section: params.Split, shapes_vox: Mapping[str, Vox3]) -> Split:
    """Divide the labelled cases.

    A share is one of all labelled cases, rounded to the nearest number, at least one. The sorted
    names are shuffled by `seed` once; test takes the first, validation the next. A share that
    takes one case of a patient takes all known ones (`dataset.patients`).

    Args:
        section: the rule.
        shapes_vox: each labelled case's scan in RAS+.

    Raises:
        ParamsError: a case that is not there or has no label, a case or a patient in two parts,
            nothing left to train on, a block of a case that is not for training or leaves its scan.
    """
    names = sorted(shapes_vox)
    shuffled = [names[n] for n in np.random.default_rng(section.seed).permutation(len(names))]
    rule = section.validation
    block = rule if isinstance(rule, params.ValidationBlock) else None
    listed = (block.case,) if block else () if isinstance(rule, float) else rule
    test = _part(section.test, "test", names, [name for name in shuffled if name not in listed])
    left = [name for name in shuffled if name not in test]
    validation = (
        () if isinstance(rule, params.ValidationBlock) else _part(rule, "validation", names, left)
    )
    twice = sorted(set(test) & set(validation))
    if twice:
        raise ParamsError(_KEY, wanted="each case in one part", got=f"{twice[0]} in two")
    training = tuple(name for name in names if name not in {*test, *validation})
    _check_patients({"training": training, "validation": validation, "test": test})
    if not training:
        got = f"test {len(test)}, validation {len(validation)} of {len(names)} labelled cases"
        raise ParamsError(f"{_KEY}: no case is left to train on", got=got)
    if block is None:
        return Split(training, tuple(Region(name) for name in validation), test, {})
    box = _box(block, training, shapes_vox)
    kept_out = {block.case: box.grown(block.margin_vox)}
    return Split(training, (Region(block.case, box),), test, kept_out)


def fold_of(split: Split, number: int, of: int) -> Split:
    """One of several folds of the training cases: its own are for validation, as whole scans.

    Every training patient is in one fold, with all its known cases. Sorted names are dealt out in
    turn, which spreads hospitals over folds where names begin with the hospital.

    Args:
        number: from 1 to `of`.

    Raises:
        ParamsError: more folds than training patients, or fewer than two.
    """
    patients = list(dict.fromkeys(map(patient_of, split.training)))
    if not 2 <= of <= len(patients) or not 1 <= number <= of:
        wanted = f"2 to {len(patients)} folds, as many as there are training patients"
        raise ParamsError("crossvalidate.folds", wanted=wanted, got=f"fold {number} of {of}")
    kept = of_same_patients(patients[number - 1 :: of], split.training)
    training = tuple(name for name in split.training if name not in kept)
    return Split(training, tuple(Region(name) for name in kept), split.test, {})


def _part(
    rule: Sequence[str] | float, key: str, names: Sequence[str], shuffled: Sequence[str]
) -> tuple[str, ...]:
    if isinstance(rule, float):
        count = max(1, round(rule * len(names))) if rule else 0
        return tuple(sorted(of_same_patients(shuffled[:count], names)))
    for name, times in Counter(rule).items():
        if name not in names:
            wanted = _few(names)
            raise ParamsError(f"{_KEY}.{key}: labelled cases", wanted=wanted, got=repr(name))
        if times > 1:
            raise ParamsError(f"{_KEY}.{key}", wanted="each case once", got=f"{name} twice")
    return tuple(sorted(rule))


def _check_patients(parts: Mapping[str, Sequence[str]]) -> None:
    """Refuse a patient with cases in more than one part."""
    found: dict[str, tuple[str, str]] = {}
    for part, names in parts.items():
        for name in names:
            other, its_part = found.setdefault(patient_of(name), (name, part))
            if its_part != part:
                wanted = f"{other} and {name} in one part: they are known to be one patient"
                raise ParamsError(_KEY, wanted=wanted, got=f"{its_part} and {part}")


def _box(
    block: params.ValidationBlock, training: Sequence[str], shapes_vox: Mapping[str, Vox3]
) -> Box:
    key = f"{_KEY}.validation"
    if block.case not in training:
        wanted = f"a training case: {_few(training)}"
        raise ParamsError(f"{key}.case", wanted=wanted, got=repr(block.case))
    box = Box(block.start_vox, block.stop_vox)
    scan = Box((0, 0, 0), shapes_vox[block.case])
    if 0 in box.size_vox or box.meet(scan) != box:
        wanted = f"start_vox < stop_vox <= {list(scan.stop_vox)}, the scan of {block.case}"
        got = f"{list(box.start_vox)} to {list(box.stop_vox)}"
        raise ParamsError(key, wanted=wanted, got=got)
    return box


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def split_to_json(split: Split) -> dict[str, Any]:
    """A split as plain values for JSON."""
    return {
        "training": list(split.training),
        "validation": [
            {"case": region.case, "box": box_to_json(region.box) if region.box else None}
            for region in split.validation
        ],
        "test": list(split.test),
        "kept_out": {case: box_to_json(box) for case, box in split.kept_out.items()},
    }


def read_split(folder: Path) -> Split:
    """The split that the stage `prepare` made.

    Raises:
        DataError: it has not been run.
    """
    path = folder / "split.json"
    if not path.is_file():
        raise DataError("no such file", where=path, do="run `dvc repro prepare` first")
    return split_from_json(json.loads(path.read_text()))


def split_from_json(values: Mapping[str, Any]) -> Split:
    """The inverse of `split_to_json`."""
    return Split(
        training=tuple(values["training"]),
        validation=tuple(
            Region(region["case"], box_from_json(region["box"]) if region["box"] else None)
            for region in values["validation"]
        ),
        test=tuple(values["test"]),
        kept_out={case: box_from_json(box) for case, box in values["kept_out"].items()},
    )


def box_to_json(box: Box) -> dict[str, list[int]]:
    """A box as plain values for JSON."""
    return {"start_vox": list(box.start_vox), "stop_vox": list(box.stop_vox)}


def box_from_json(values: Mapping[str, Any]) -> Box:
    """The inverse of `box_to_json`."""
    return Box(vox3(values["start_vox"]), vox3(values["stop_vox"]))
