"""Brain tumours' names are the preset's: elsewhere they come from the data set."""

import ast
import re
import subprocess
from functools import cache

from gliotrail.dataset.brats import BRATS
from tests.support.scans import ROOT

PACKAGE = ROOT / "platform/gliotrail"
OF_BRAIN_TUMOURS = {
    "dataset/brats.py",
    "synthesis/tumours.py",
    "imaging/formats/brats.py",
    "imaging/formats/bids.py",  # a T1w after contrast is T1gd
    "cli/scans.py",  # --flair, --t1, --t1gd, --t2
    "cluster/pretrain.py",  # the card of weights from synthetic brain tumours
}


NAMES = {*BRATS.channel_names, *BRATS.names}
WORDS = re.compile(
    rf"(?<![A-Za-z])(?:{'|'.join(map(re.escape, sorted(NAMES, key=len)[::-1]))})(?![A-Za-z])"
)


@cache
def strings(source: str) -> list[str]:
    """All text in code that is no docstring: constants, and the fixed parts of f-strings."""
    tree = ast.parse(source)
    said = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    ]


def named_in(source: str) -> set[str]:
    """The preset's names in a module's code, also within longer texts such as metrics' keys."""
    return {found for text in strings(source) for found in WORDS.findall(text)}


def test_no_list_of_channels_classes_or_regions_outside_the_preset() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        named = named_in(path.read_text(encoding="utf-8"))
        if named and place not in OF_BRAIN_TUMOURS:
            found[place] = sorted(named)
    assert not found


def test_no_text_calls_any_data_sets_classes_a_tumour() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() not in OF_BRAIN_TUMOURS
        for text in strings(path.read_text(encoding="utf-8"))
        if re.search(r"(?i)(?<!brain)(?<!brain )(?<!synthetic )tumou?r", text)
    }
    assert not found


def test_no_such_list_in_what_is_no_python_either() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "dvc.yaml", ".dvc", "pipelines", "platform/gliotrail"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".yaml", ".json"} or name.endswith("viewer.html"):
            assert not WORDS.findall(path.read_text(encoding="utf-8")), name


def test_the_test_sees_names_in_keys_and_sentences_and_not_in_docstrings() -> None:
    assert named_in('x = ["val/dice_WT"]') == {"WT"}
    assert named_in('print(f"the mean of WT, TC and {last}")') == {"WT", "TC"}
    assert named_in('"""FLAIR and edema."""\nEDGE = "WTO"') == set()
