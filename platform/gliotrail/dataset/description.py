"""A data set's `dataset.json` in either dialect: the Medical Segmentation Decathlon's or nnU-Net's.

The Decathlon: `modality` (number -> channel) and `labels` (code -> name). nnU-Net v2:
`channel_names` and `labels` (name -> code, or for regions a list of codes, with
`regions_class_order`; the name `ignore` is for voxels whose truth is unknown); see
documentation/dataset_format.md and region_based_training.md of nnU-Net. Either may also have our
own `regions` (name -> list of codes) beside plain classes, and `channel_kinds` (number -> MR, CT,
none), where a channel's name does not show it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gliotrail.dataset import brats
from gliotrail.dataset.task import Channel, Class, Kind, Region, Task, as_name
from gliotrail.errors import DataError

DESCRIPTION: Final = "dataset.json"
_LARGEST_BYTES: Final = 20_000_000
_KINDS: Final[Mapping[str, Kind]] = {"mr": "MR", "ct": "CT", "none": "none"}
_KIND_BY_NAME: Final[Mapping[str, Kind]] = {"ct": "CT", "nonorm": "none"}  # as nnU-Net has it


def read_json(where: Path) -> Mapping[str, Any]:
    """The JSON object of a description.

    Raises:
        DataError: no such file, no JSON object, or a key that is there twice.
    """
    if not where.is_file():
        do = "a folder in the Decathlon's or nnU-Net's layout is wanted"
        raise DataError("no such file", where=where, do=do)
    if where.stat().st_size > _LARGEST_BYTES:
        raise DataError("bytes", where=where, wanted=f"at most {_LARGEST_BYTES}")
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


def task_of(values: Mapping[str, Any], where: Path) -> tuple[Task, tuple[int, ...]]:
    """A description's task, and where each of its channels is in a case's files.

    Raises:
        DataError: naming the wrong key.
    """
    channels = _channels(values, where)
    order = tuple(range(len(channels)))
    names = [channel.name for channel in channels]
    if sorted(names) == sorted(brats.BRATS.channel_names):
        order = tuple(names.index(name) for name in brats.BRATS.channel_names)
    by_code, regions, ignore = _labels(values, where)
    fields: dict[str, Any] = {
        "name": str(values.get("name") or ""),
        "channels": tuple(channels[place] for place in order),
        "ignore": ignore,
        "file_ending": str(values.get("file_ending") or ".nii.gz"),
        "licence": str(values.get("licence") or values.get("license") or ""),
        "reference": str(values.get("reference") or ""),
    }
    written = values.get("regions_class_order")
    codes = brats.codes_of_regions(regions) if regions else brats.codes_of_classes(by_code)
    try:
        if codes is not None and set(codes) == set(by_code):
            classes = tuple(
                Class(name=one.name, code=code)
                for one, code in zip(brats.BRATS.classes, codes, strict=True)
            )
            return Task(**fields, classes=classes, regions=brats.BRATS.regions), order
        classes = tuple(Class(name=as_name(by_code[c]), code=c) for c in sorted(by_code))
        places = {one.code: label for label, one in enumerate(classes, start=1)}
        return Task(**fields, classes=classes, regions=_regions(regions, places, written)), order
    except ValidationError as error:
        problem = error.errors()[0]
        what = ".".join(str(part) for part in problem["loc"]) or "labels"
        told_so = problem["msg"].removeprefix("Value error, ")
        raise DataError(what, where=where, got=f"{_short(problem['input'])}: {told_so}") from None
    except ValueError as error:
        raise DataError("regions", where=where, got=str(error)) from None


def _channels(values: Mapping[str, Any], where: Path) -> list[Channel]:
    key = "channel_names" if "channel_names" in values else "modality"
    names = _numbered(values.get(key), key, where)
    kinds = values.get("channel_kinds", {})
    if not isinstance(kinds, dict) or not all(
        str(kind).lower() in _KINDS and number.isdecimal() and int(number) < len(names)
        for number, kind in kinds.items()
    ):
        wanted = 'some of the channels\' numbers, each with "MR", "CT" or "none"'
        raise DataError("channel_kinds", where=where, wanted=wanted, got=_short(kinds))
    channels = []
    for number, name in enumerate(names):
        kind = _KIND_BY_NAME.get(name.strip().lower(), "MR")
        kind = _KINDS[str(kinds[str(number)]).lower()] if str(number) in kinds else kind
        try:
            channels.append(Channel(name=as_name(brats.channel_name(name)), kind=kind))
        except ValidationError:
            wanted = "a name of letters and digits"
            raise DataError(f"{key} {number}", where=where, wanted=wanted, got=repr(name)) from None
    standard = [channel.name.lower() for channel in channels]
    if len(set(standard)) < len(standard):
        got = ", ".join(names)
        raise DataError(key, where=where, wanted="each channel once", got=got)
    return channels


def _numbered(values: Any, key: str, where: Path) -> list[str]:
    """{"0": "FLAIR", "1": "T1w"} -> [FLAIR, T1w]."""
    wanted = [str(n) for n in range(len(values))] if isinstance(values, dict) else []
    if not wanted or sorted(values) != sorted(wanted) or not _all_text(values.values()):
        raise DataError(key, where=where, wanted='names numbered "0", "1", ..', got=_short(values))
    return [values[n] for n in wanted]


def _all_text(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


_Regions = Sequence[tuple[str, frozenset[int]]]


def _labels(values: Mapping[str, Any], where: Path) -> tuple[dict[int, str], _Regions, int | None]:
    """Names by code (without the background), regions with their codes, the code to ignore."""
    labels = values.get("labels")
    if not isinstance(labels, dict) or not labels:
        wanted = "names of codes, or codes of names"
        raise DataError("labels", where=where, wanted=wanted, got=_short(labels))
    if all(str(key).isdecimal() for key in labels) and _all_text(labels.values()):  # Decathlon
        pairs = [(name, _codes(code, code, where)) for code, name in labels.items()]
    else:
        pairs = [(name, _codes(code, name, where)) for name, code in labels.items()]
    own = values.get("regions", {})
    if not isinstance(own, dict):
        raise DataError("regions", where=where, wanted="lists of codes by name", got=_short(own))
    by_code: dict[int, str] = {}
    regions: list[tuple[str, frozenset[int]]] = []
    background, ignore = False, None
    several = any(isinstance(code, list | tuple) for code in labels.values())
    for name, codes in pairs:
        if codes == (0,):
            background = True
        elif name.strip().lower() == "ignore":
            ignore = codes[0]
        elif several:
            regions.append((name, frozenset(codes)))
        else:
            by_code |= _new(codes[0], name, by_code, where)
    if not background:
        raise DataError("labels", where=where, wanted="a background of 0", got=_short(labels))
    for name, codes in [(name, _codes(codes, name, where)) for name, codes in own.items()]:
        regions.append((name, frozenset(codes)))
    if several:
        for code in sorted(frozenset().union(*(codes for _, codes in regions))):
            by_code[code] = f"label_{code}"
    return by_code, regions, ignore


def _new(code: int, name: str, known: Mapping[int, str], where: Path) -> dict[int, str]:
    if code in known:
        raise DataError("labels", where=where, wanted="each code once", got=f"{code} twice")
    return {code: name}


def _codes(value: Any, name: str, where: Path) -> tuple[int, ...]:
    """One code, or a region's."""
    several = value if isinstance(value, list | tuple) else [value]
    codes = []
    for code in several:
        number = int(code) if isinstance(code, str) and code.isdecimal() else code
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 255:
            wanted = "codes from 0 to 255"
            raise DataError(f"labels {name}", where=where, wanted=wanted, got=_short(value))
        codes.append(number)
    if not codes:
        raise DataError(f"labels {name}", where=where, wanted="a code", got="none")
    return tuple(codes)


def _regions(regions: _Regions, places: Mapping[int, int], order: Any) -> tuple[Region, ...]:
    """Regions as labels, each with the one that it writes.

    Raises:
        ValueError: a code that no class has, or an order that does not fit.
    """
    if not regions:
        return ()
    for name, codes in regions:
        if strange := sorted(codes - set(places)):
            raise ValueError(f"{name} has the code {strange[0]}, which no class has")
    if order is None:
        rest = [*(codes for _, codes in regions[1:]), frozenset[int]()]
        own = [codes - after for (_, codes), after in zip(regions, rest, strict=True)]
        nested = all(outer > inner for (_, outer), (_, inner) in pairwise(regions))
        if not nested or not all(own):
            raise ValueError("regions_class_order is missing, and regions are not nested in turn")
        order = [min(codes) for codes in own]
    if not isinstance(order, list) or len(order) != len(regions):
        raise ValueError(f"regions_class_order: {len(regions)} codes are wanted, got {order}")
    if strange := [code for code in order if code not in places]:
        raise ValueError(f"regions_class_order has the code {strange[0]}, which no class has")
    return tuple(
        Region(
            name=as_name(name),
            labels=tuple(sorted(places[code] for code in codes)),
            written=places[code],
        )
        for (name, codes), code in zip(regions, order, strict=True)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
