"""params.yaml as nobody should write it."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from ruamel.yaml import YAML

from gliotrail import params
from gliotrail.errors import ParamsError
from tests.hostile.conftest import SEED, Tally, fuzz
from tests.support.projects import ROOT

TEXT = (ROOT / "params.yaml").read_text()
SEED_LINE = "    seed: 7\n    test:"


def with_seed(value: str) -> str:
    assert SEED_LINE in TEXT
    return TEXT.replace(SEED_LINE, f"    seed: {value}\n    test:")


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


BAD = {
    "a bomb of aliases": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchor or alias a"),
    "an anchor": (with_seed("&here 7"), "anchor or alias here"),
    "merging": ("a: &a {x: 1}\nb:\n  <<: *a\n", "anchor or alias"),
    "a Python object": ("!!python/object/apply:os.system ['touch canary']", "got tag tag:yaml"),
    "a tag": (with_seed("!!bool x"), "got tag tag:yaml"),
    "brackets": ("[" * 200, "nested too deep: wanted <= 20 levels"),
    "brackets without end": ("[" * 49_999, "brackets: wanted <= 1000, got 49999"),
    "sections": ("".join(" " * n + "a:\n" for n in range(200)), "nested too deep"),
    "too long": ("a: [" + "1," * 30_000 + "]", "bytes: wanted <= 50000, got 60005"),
    "thousands of digits": (with_seed("9" * 5000), "not YAML"),
    "thousands of hex digits": (with_seed("0x" + "f" * 5000), "seed: .*, got a number that long"),
    "a key twice": (with_seed("7\n    seed: 8"), "not YAML"),
    "NUL": ("a: \0", "not YAML"),
    "another alphabet": ("\xff", "not YAML"),
    "nothing": ("", "the file: a section of keys and values is wanted"),
    "a list": ("[1]", "the file: a section of keys and values is wanted"),
    "two documents": (TEXT + "---\na: 1\n", "not YAML"),
    "no such day": (with_seed("2001-99-99"), "not YAML"),
    "a terminal's orders": (with_seed('"\\e[2J"'), "split.seed: input should be a valid int"),
    "a negative rate": (
        changed("learning_rate: from_sweep", "learning_rate: -1"),
        "train.learning_rate: a number above 0 and at most 1.*got -1",
    ),
    "no number": (changed("weight_decay: 1e-4", "weight_decay: .nan"), "a finite number is wanted"),
    "infinity": (changed("weight_decay: 1e-4", "weight_decay: .inf"), "a finite number is wanted"),
    "no share": (changed("class_centred: 0.5", "class_centred: .nan"), "class_centred: input"),
    "no threshold": (changed("threshold: 0.5", "threshold: .nan"), "evaluate.threshold: input"),
    "a patch of 0": (changed("32x32x16,", "0x32x16,"), "sizes.0: a patch size such as .*0x32x16"),
    "other digits": (changed("32x32x16,", "\uff13\uff12x32x16,"), "sizes.0: a patch size such as"),
    "a patch of one number": (changed("32x32x16,", "32,"), "sizes.0: a patch size .* got 32"),
    "text for a number": (changed("per_case: 240", "per_case: '240'"), "per_case: .*got '240'"),
    "true for a number": (changed("per_case: 240", "per_case: true"), "per_case: .*got True"),
    "true for a fold": (changed("folds: []", "folds: [true]"), r"folds: .*got \[True\]"),
    "a batch that no memory holds": (
        changed("batch_size: 4 ", "batch_size: 1000000000 "), "batch_size: input should be less"),
    "nothing for a number": (changed("threshold: 0.5", "threshold:"), "threshold: .*got None"),
    "a typo": (
        changed("learning_rate: from_sweep", "lerning_rate: from_sweep"),
        r"train.lerning_rate: unknown key; did you mean learning_rate\? \(1 more",
    ),
    "a typo where a section's name has two meanings": (
        changed("    scans: 4", "    scan: 4"),
        r"pretrain\.validation\.scan: unknown key; did you mean scans\?"),
    "a typo in a block": (
        changed("      margin_vox: 9", "      margins_vox: 9"), r"did you mean margin_vox\?"),
    "a typo in a section": (
        changed("\nevaluate:", "\nevalute:"), r"evalute: unknown key; did you mean evaluate\?"),
    "a key without end": (TEXT + "k" * 900 + ": 1\n", r"kkk\.\.\.$"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_params_that_make_no_sense_are_one_line(what: str, tmp_path: Path, tally: Tally) -> None:
    text, message = BAD[what]
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("latin-1" if text == "\xff" else "utf-8"))
    with pytest.raises(ParamsError, match=message):
        params.load(path)
    told = tally.refusal(params.load, path)
    assert told is not None and len(told) < 1500
    assert list(tmp_path.iterdir()) == [path]


def test_a_params_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").symlink_to("/dev/zero")
    with pytest.raises(ParamsError, match="no such file"):
        params.load(tmp_path / "params.yaml")


VALUES = YAML(typ="safe").load(TEXT)
STRANGE: list[Any] = [
    None, True, 0, -1, 10**30, 1e308, -0.0, float("nan"), float("inf"), "", "x", "\0", "../x",
    [], [[]], {}, {"x": 1}, [1, [2]], "7", "1e-4", "from_sweep", "0x0x0",
]  # fmt: skip


def keys(values: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(values, dict):
        return [above]
    return [above, *(found for key in values for found in keys(values[key], (*above, key)))][
        not above :
    ]


def attack(where: tuple[Any, ...], value: object, tally: Tally) -> None:
    values = copy.deepcopy(VALUES)
    part = values
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    if tally.refusal(params.validate, values) is None:
        read = params.validate(values)
        again = params.validate(read.model_dump(mode="json"))
        tally.check(read == again)


EVERY = {"where": st.sampled_from(keys(VALUES)), "value": st.sampled_from(STRANGE)}


@fuzz(80, **EVERY)
def test_any_value_at_any_key_is_refused_in_one_line_or_means_itself(
    where: tuple[Any, ...], value: object, tally: Tally
) -> None:
    attack(where, value, tally)


@pytest.mark.long
@fuzz(3000, use=SEED, **EVERY)
def test_all_values_at_all_keys_are(where: tuple[Any, ...], value: object, tally: Tally) -> None:
    attack(where, value, tally)
