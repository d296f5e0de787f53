"""Draws which room of the package imports which: docs/pictures/rooms.svg, by `make docs`.

What is drawn is read from the code: the order of the rooms is that of import-linter's layers in
pyproject.toml, the imports and libraries are grimp's, the words are the packages' docstrings.
"""

import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from importlib import import_module
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
ROW, TOP, NAMES, DOTS, DOT = 44, 112, 20, 600, 30
"""Pixels: height of a room, where the first is, where names and dots are, from dot to dot."""
DARK, LIGHT, WORDS, LINE, MARK = "#15181C", "#F2F4F7", "#C9D1DB", "#3A424D", "#56B4E9"


def rooms() -> list[str]:
    """The rooms of the package from the highest to the lowest, as import-linter has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [name for layer in layers for name in layer.replace(":", "|").split(" | ")]
    return [name for name in names if (ROOT / "platform/gliotrail" / name).is_dir()]


def imports() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """For each room, the rooms and the libraries that its modules import themselves."""
    graph = grimp.build_graph(
        *("gliotrail", "pipelines"),
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )
    inside, outside = defaultdict(set), defaultdict(set)
    for module in graph.modules:
        for name in graph.find_modules_directly_imported_by(module):
            top = name.partition(".")[0]
            if top in {"gliotrail", "pipelines"}:
                inside[_room(module)].add(_room(name))
            elif top not in sys.stdlib_module_names:
                outside[_room(module)].add(top)
    return inside, outside


def _room(module: str) -> str:
    top, *rest = module.split(".")
    return rest[0] if top == "gliotrail" and rest else top


def drawing() -> str:
    """The picture, as SVG."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    names = ["pipelines", *rooms()]
    inside, outside = imports()
    width, height = DOTS + DOT * len(names) + 30, TOP + ROW * len(names) + 10
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="system-ui, sans-serif" font-size="15" role="img"'
        ' aria-label="Which room of the code imports which; all imports go downwards">'
    )
    yield f'<rect width="{width}" height="{height}" rx="10" fill="{DARK}"/>'
    yield f'<text x="{NAMES}" y="34" fill="{LIGHT}" font-weight="bold">room, and libraries</text>'
    yield f'<text x="{NAMES}" y="56" fill="{WORDS}">dots: the rooms it imports</text>'
    for n, name in enumerate(names):
        x, y = DOTS + DOT * n + DOT // 2, TOP + ROW * n
        words = import_module(name if name == "pipelines" else f"gliotrail.{name}").__doc__ or ""
        said = re.split(r"\.(?:\s|$)", words)[0].replace("`", "")
        uses = ", ".join(sorted(outside[name], key=str.lower))
        yield f'<path d="M{NAMES} {y}H{width - 20}" stroke="{LINE}"/>'
        yield f'<text x="{NAMES}" y="{y + 19}" fill="{LIGHT}" font-weight="bold">{name}</text>'
        yield f'<text x="150" y="{y + 19}" fill="{WORDS}" font-size="13">{escape(said)}</text>'
        yield f'<text x="150" y="{y + 36}" fill="{MARK}" font-size="12">{uses}</text>'
        yield (
            f'<text transform="translate({x + 5} {TOP - 8}) rotate(-60)" fill="{LIGHT}"'
            f' font-size="13">{name}</text>'
        )
        for column, other in enumerate(names):
            at = f'cx="{DOTS + DOT * column + DOT // 2}" cy="{y + ROW // 2}"'
            if other == name:
                yield f'<circle {at} r="3" fill="{LINE}"/>'
            elif other in inside[name]:
                yield f'<circle {at} r="7" fill="{MARK}"/>'
    yield "</svg>"
