"""A sweep's space and its points. A point has a value for each swept key of `train`.

Points follow from params.yaml and the seed alone, not from where or when trials run; those of TPE
also depend on earlier results.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from gliotrail.errors import ParamsError
from gliotrail.params import Choice, Params, Sweep

Point = dict[str, Any]
"""A value for each swept key; a key within a section of `train` is dotted: `augment.flip`."""

FIXED: Final = ("epochs", "epoch_voxels", "seed")
"""Keys of `train` that can't be swept: they would change a trial's budget."""
LASTING: Final = (
    "batch_size", "freeze", "init", "keep", "model", "patch_size", "precision",
)  # fmt: skip
"""Keys of `train` that must not change in mid-training: checkpoints or steps would not fit."""
_DRAWS: Final = 100
"""How often to draw again, for each trial, when a point was drawn before."""


class Space:
    """A sweep's space, checked against `train`.

    Raises:
        ParamsError: a key that can't be swept, or not by this algorithm; too few points.
    """

    def __init__(self, params: Params) -> None:
        self.sweep: Sweep = params.sweep
        self.choices: Mapping[str, Choice] = params.sweep.space
        self._whole = {key for key in self.choices if _is_whole(params, key)}
        for key, choice in self.choices.items():
            where = f"sweep.space.{key}"
            given = [values for _, values in choice if values is not None]
            if len(given) != 1:
                raise ParamsError(where, wanted="one of grid, choice, uniform, loguniform")
            if any(value in given[0][:n] for n, value in enumerate(given[0])):
                raise ParamsError(where, wanted="different values", got=list(given[0]))
            if choice.loguniform and choice.loguniform[0] <= 0:
                raise ParamsError(where, wanted="numbers above 0", got=list(choice.loguniform))
            if key in FIXED:
                raise ParamsError(f"{where}: can't be swept", do=f"set sweep.{key}")
            if self.sweep.algorithm == "grid" and _values(choice) is None:
                do = "list values in `choice`, or take algorithm random or optuna"
                raise ParamsError(f"{where}: a grid has no numbers between two ends", do=do)
            if self.sweep.algorithm in {"optuna", "pbt"} and choice.grid:
                what = f"{where}: {self.sweep.algorithm} chooses by itself"
                raise ParamsError(what, do="write choice, not grid")
            one = choice.choice is not None and len(choice.choice) == 1
            if self.sweep.algorithm == "pbt" and key.partition(".")[0] in LASTING and not one:
                do = "give it one choice, or take another algorithm"
                raise ParamsError(f"{where}: pbt can't change it in mid-training", do=do)
        if self.sweep.algorithm == "pbt" and self.sweep.scheduler != "fifo":
            raise ParamsError("sweep.scheduler", wanted="fifo, as algorithm pbt stops no trial",
                              got=self.sweep.scheduler)  # fmt: skip
        there = math.prod(len(_values(c) or ()) or math.inf for c in self.choices.values())
        if self.sweep.algorithm != "grid" and there < self.sweep.trials:
            raise self.too_few(int(there))

    def probes(self) -> list[Point]:
        """A few points that together cover all values of lists and both ends of ranges."""
        listed = {key: _values(choice) or _ends(choice) for key, choice in self.choices.items()}
        first = {key: values[0] for key, values in listed.items()}
        others = [first | {key: v} for key, values in listed.items() for v in values[1:]]
        return [first, *others]

    def points(self) -> list[Point]:
        """The points to try: a grid in the order of params.yaml, or random ones.

        A random sweep with more trials starts with those of one with fewer. Every value in a
        `grid` meets the same draws of the other keys.

        Raises:
            ParamsError: the space has fewer points than trials.
        """
        if self.sweep.algorithm == "grid":
            return _product({key: _values(choice) for key, choice in self.choices.items()})
        found: dict[str, Point] = {}
        grid = _product({key: choice.grid for key, choice in self.choices.items() if choice.grid})
        for number in range(self.sweep.trials * _DRAWS):
            drawn = self.draw(number)
            for fixed in grid:
                point = drawn | fixed
                found.setdefault(name_of(point), point)
            if len(found) >= self.sweep.trials:
                return list(found.values())[: self.sweep.trials]
        raise self.too_few(len(found))

    def draw(self, number: int) -> Point:
        """The random point of a number; always the same one."""
        rng = np.random.default_rng((self.sweep.seed, number))
        shares = rng.random(len(self.choices))
        return {
            key: self.value(key, share) for key, share in zip(self.choices, shares, strict=True)
        }

    def value(self, key: str, share: float) -> Any:
        """The quantile of a key's values: a share in [0, 1) -> a value."""
        return _at(self.choices[key], float(share), key in self._whole)

    def is_whole(self, key: str) -> bool:
        """Whether its values are whole numbers."""
        return key in self._whole

    def too_few(self, there: int) -> ParamsError:
        """The error for a space with fewer points than trials."""
        return ParamsError("sweep.trials", wanted=f"at most {there}, all that the space has",
                           got=self.sweep.trials)  # fmt: skip


def name_of(point: Point) -> str:
    """A name of a point; equal points have equal names."""
    return json.dumps(point, sort_keys=True)


def changes(params: Params, point: Point) -> dict[str, Any]:
    """The changes of the section `train` that a point makes, with what all trials share.

    Raises:
        ParamsError: a dotted key whose section `train` hasn't.
    """
    train = params.train.model_dump(mode="json")
    changed: dict[str, Any] = {key: getattr(params.sweep, key) for key in FIXED}
    for key, value in point.items():
        section, dot, last = key.partition(".")
        if not dot:
            changed[key] = value
            continue
        if not isinstance(train.get(section), dict):
            known = [name for name, values in train.items() if isinstance(values, dict)]
            got = f"train has {' and '.join(known)}"
            raise ParamsError(f"sweep.space.{key}: no such section {section}", got=got)
        changed[section] = changed.get(section, train[section]) | {last: value}
    return changed


def _is_whole(params: Params, key: str) -> bool:
    value: Any = params.train.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return isinstance(value, int)


def _values(choice: Choice) -> Sequence[Any] | None:
    return choice.grid or choice.choice


def _ends(choice: Choice) -> Sequence[float]:
    ends = choice.uniform or choice.loguniform
    assert ends is not None
    return ends


def _at(choice: Choice, share: float, whole: bool) -> Any:
    """The quantile: a share in [0, 1) -> the value below which this share of all draws lies."""
    values = _values(choice)
    if values is not None:
        return values[int(share * len(values))]
    low, high = _ends(choice)
    high += whole  # the last whole number is as likely as the others
    log = choice.loguniform is not None
    value = low * (high / low) ** share if log else low + share * (high - low)
    return math.floor(value) if whole else value


def _product(values: Mapping[str, Sequence[Any] | None]) -> list[Point]:
    lists = [[(key, value) for value in of or ()] for key, of in values.items()]
    return [dict(pairs) for pairs in itertools.product(*lists)]
