"""params.yaml: all that changes a result, as frozen, strict models. No defaults in code.

One section a stage. A key that is unknown, missing or out of range is an error of one line that
names the key and the nearest known one. Where a run happens (workers, addresses) is environment.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from gliotrail.errors import ParamsError
from gliotrail.param_types import (
    Count,
    Number,
    OwnNames,
    PatchSize,
    PatchSizeOrSweep,
    Probability,
    RateOrSweep,
    Seed,
    SpacingRule,
    Standardize,
    Vox3,
    one_of_or_own,
)
from gliotrail.plain_yaml import read_yaml

LARGEST_BYTES = 50_000
"""A longer params.yaml is refused: reading it would take minutes."""


class Section(BaseModel):
    """Common to all sections: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Fetch(Section):
    """Where the raw data come from."""

    source: Annotated[str, Field(min_length=1)]


class ValidationBlock(Section):
    """A box of one training case (voxels of its scan in RAS+) that training patches avoid."""

    case: str
    start_vox: Vox3
    stop_vox: Vox3
    margin_vox: Annotated[int, Field(ge=0)]


def _cases(value: object) -> object:
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    if isinstance(value, float) and 0 <= value < 1:
        return value
    if value == 0 and not isinstance(value, bool):
        return 0.0
    raise ValueError(f"a list of case names, or a share from 0 up to 1, is wanted, got {value!r}")


Cases = Annotated[
    tuple[str, ...] | float,
    PlainValidator(_cases),
    PlainSerializer(lambda value: list(value) if isinstance(value, tuple) else value),
]
CasesOrBlock = Annotated[
    Annotated[Cases, Tag("cases")] | Annotated[ValidationBlock, Tag("block")],
    Discriminator(lambda value: "block" if isinstance(value, dict | BaseModel) else "cases"),
]


class Split(Section):
    """Which cases are for training, validation and testing; by patient, never by patch."""

    seed: Seed
    test: Cases
    validation: CasesOrBlock


class Prepare(Section):
    """How raw scans become arrays."""

    spacing: SpacingRule
    split: Split


class Picture(Section):
    """The pictures of the prepared data.

    animations: a GIF through each case's slices, slow to draw for hundreds of cases.
    """

    animations: bool


class Patch(Section):
    """How sub-volumes are drawn from the prepared arrays."""

    sizes: Annotated[tuple[PatchSize, ...], Field(strict=False, min_length=1)]
    per_case: Count
    background_below: Annotated[float, Field(gt=0, le=1)]
    class_centred: Probability
    without_class: Probability
    seed: Seed


def _ends(value: object) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and _is_pairs([value]) and value[0] < value[1]:
        return tuple(value)
    raise ValueError(f"two rising numbers, such as [0.1, 0.5], are wanted, got {value!r}")


Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
Ends = Annotated[tuple[float, ...], PlainValidator(_ends), PlainSerializer(list)]


class Choice(Section):
    """The values to try of one key: all of a list, some of it, or numbers between two ends."""

    grid: Values | None = None
    choice: Values | None = None
    uniform: Ends | None = None
    loguniform: Ends | None = None


class Sweep(Section):
    """The trials of a sweep, and their budget. They are compared by whole-scan validation Dice."""

    space: Annotated[dict[str, Choice], Field(min_length=1)]
    algorithm: Literal["grid", "random", "optuna", "pbt"]
    trials: Count
    scheduler: Literal["fifo", "asha", "hyperband"]
    reduction: Annotated[int, Field(ge=2)]
    epochs: Count
    epoch_voxels: Count
    keep: Literal["winner", "all"]
    seed: Seed


NetworkName = Annotated[str, PlainValidator(one_of_or_own("unet3d", "dynunet", "segresnet"))]
LossName = Annotated[str, PlainValidator(one_of_or_own("soft_dice", "dice_ce"))]


class Model(Section):
    """The network. `unet3d, depth: 2, base_filters: 32` has exactly 833,507 parameters.

    `dynunet`, `segresnet` and your own (`my_package.module:Class`) want gliotrail[monai].

    heads: the outputs: the `classes`, or the nested `regions` of REGIONS.
    deep_supervision: `dynunet` only: a loss on coarser levels, too (nnU-Net, arXiv:1904.08128).
    residual: `dynunet` only: blocks with a shortcut (He et al., 2016, arXiv:1512.03385).
    space_to_depth: the side in voxels of cubes that become one voxel with more channels before the
        network, and back after it (Shi et al., 2016, arXiv:1609.05158): at half the resolution a
        network takes an eighth of the time and sees twice as far.
    """

    name: NetworkName
    depth: Annotated[int, Field(ge=1, le=6)]
    base_filters: Annotated[int, Field(ge=1, le=512)]
    # later additions: weights files without them have networks without them
    heads: Literal["classes", "regions"] = "classes"
    residual: bool = False
    deep_supervision: bool = False
    space_to_depth: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "dynunet" and self.depth < 3:
            raise ValueError(f"depth: dynunet wants 3 or more, got {self.depth}")
        for what in ("residual", "deep_supervision"):
            if getattr(self, what) and self.name != "dynunet":
                raise ValueError(f"{what}: true is for dynunet, got {self.name}")
        if self.space_to_depth > 1 and self.name not in {"dynunet", "segresnet"}:
            raise ValueError(f"space_to_depth: 2 is for dynunet and segresnet, got {self.name}")
        if self.name == "segresnet" and (n := self.base_filters) % 8:
            raise ValueError(f"base_filters: segresnet wants multiples of 8, got {n}")
        return self


class Augment(Section):
    """Random changes of a patch, drawn anew each time it is served.

    `flip` is the probability a mirror axis, `intensity_scale` and `intensity_shift` are half
    widths; all others are the probability of one of nnU-Net's changes, whose ranges are in
    `segmentation.augment`. `own` are yours, made after these, of every patch.
    """

    flip: Probability
    rotate: Probability
    scale: Probability
    noise: Probability
    blur: Probability
    brightness: Probability
    contrast: Probability
    low_resolution: Probability
    gamma: Probability
    intensity_scale: Annotated[Number, Field(ge=0, lt=1)]
    intensity_shift: Annotated[Number, Field(ge=0, le=2)]
    own: OwnNames


class Train(Section):
    """How the network is trained. Batch size and budget are global, whatever the workers."""

    model: Model
    init: Annotated[str, Field(min_length=1)]
    freeze: Literal["none", "encoder"]
    rehearsal: Probability
    standardize: Standardize
    loss: LossName
    optimizer: Literal["adamw", "sgd"]
    learning_rate: RateOrSweep
    patch_size: PatchSizeOrSweep
    weight_decay: Annotated[Number, Field(ge=0, le=1)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    clip: Annotated[Number, Field(ge=0)]
    average: Annotated[float, Field(ge=0, lt=1)]
    keep: Literal["last", "best"]
    postprocess: Literal["none", "validation"]
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    epochs: Count
    epoch_voxels: Count
    augment: Augment
    precision: Literal["float32", "tf32", "float64", "bfloat16", "float16"]
    seed: Seed


def _spans(value: object) -> tuple[tuple[float, float], ...]:
    numbers = [x for pair in value for x in pair] if _is_pairs(value) else []
    if numbers and numbers == sorted(numbers) and numbers[0] >= 0 and numbers[-1] <= 1:
        return tuple((float(a), float(b)) for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    raise ValueError(f"rising spans within 0 and 1, such as [[0, 0.4], [0.6, 1]], got {value!r}")


def _is_pairs(value: object) -> TypeGuard[Sequence[Sequence[float]]]:
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in pair)
        for pair in value
    )


Spans = Annotated[
    tuple[tuple[float, float], ...],
    PlainValidator(_spans),
    PlainSerializer(lambda spans: [list(span) for span in spans]),
]
Names = Annotated[
    tuple[Annotated[str, Field(pattern=r"^\w+$")], ...], Field(strict=False, min_length=1)
]


class Phantoms(Section):
    """Synthetic tumours: from which heads and shapes, and which spans of every range of looks."""

    anatomies: Names
    shapes: Names
    spans: Spans


class Rehearsed(Phantoms):
    """Synthetic tumours for training: new ones without end."""

    healthy: Probability


class Judged(Phantoms):
    """Synthetic tumours for validation: a few whole ones, always the same."""

    scans: Annotated[int, Field(ge=1, le=1000)]
    size: PatchSize
    seed: Seed


class Pretrain(Section):
    """The training on synthetic tumours alone that `pretrained` weights began with."""

    phantoms: Rehearsed
    validation: Judged
    train: Train


def _folds(value: object) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        numbers = list(range(1, len(value) + 1))
        if repr(list(value)) == repr(numbers):  # `true` is no 1
            return tuple(numbers)
    raise ValueError(f"[] or the numbers from 1 on, such as [1, 2, 3, 4, 5], got {value!r}")


class Crossvalidate(Section):
    """The folds of the training patients to train and judge, each a stage of its own."""

    folds: Annotated[tuple[int, ...], PlainValidator(_folds), PlainSerializer(list)]


class Evaluate(Section):
    """How held-out patients are segmented and scored.

    measures: your own, besides the built-in ones.
    """

    threshold: Annotated[float, Field(gt=0, lt=1)]
    measures: OwnNames


class Params(Section):
    """The whole of params.yaml."""

    fetch: Fetch
    prepare: Prepare
    picture: Picture
    patch: Patch
    sweep: Sweep
    pretrain: Pretrain
    train: Train
    evaluate: Evaluate
    crossvalidate: Crossvalidate


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml (YAML 1.2, as DVC reads it: `3e-4` is a number).

    Raises:
        ParamsError: the file is missing, is no YAML, or a key is unknown, missing or wrong.
    """
    return validate(read_yaml(path, LARGEST_BYTES), where=path)


def validate(values: object, where: object = "params") -> Params:
    """Check plain values against the models.

    Raises:
        ParamsError: naming the first wrong key, and how many more there are.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        # a mistyped key is also a missing one: name the key in the file
        problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
        more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
        raise _as_params_error(problems[0], values, where, more) from None


def _as_params_error(
    problem: ErrorDetails, values: object, where: object, more: str
) -> ParamsError:
    path = [part for part in problem["loc"] if not _is_type_name(part)]
    key = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return ParamsError(f"{key}: unknown key; {hint}{more}", where=where)
    if problem["type"] == "missing":
        return ParamsError(f"{key}: missing key{more}", where=where)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in {"model_type", "dict_type"}:
        message = "a section of keys and values is wanted"
    message = message[0].lower() + message[1:]
    try:
        got = repr(problem["input"])
    except ValueError:  # a whole number of thousands of digits
        got = "a number that long"
    shown = "" if got in message else f", got {got}"
    return ParamsError(f"{key or 'the file'}: {message}{shown}{more}", where=where)


def _is_type_name(part: object) -> bool:
    """Pydantic puts the tags of a union in an error's path."""
    return part in {"cases", "block"}


def _known_keys(path: list[Any]) -> list[str]:
    """The keys of the section at `path`."""
    section: Any = Params
    for part in path:
        section = getattr(section, "model_fields", {}).get(part, section)
        section = getattr(section, "annotation", section)
        # of a union's types, the one with keys
        if not hasattr(section, "model_fields"):
            section = {"validation": ValidationBlock, "space": Choice}.get(part, section)
    return list(getattr(section, "model_fields", {}))
