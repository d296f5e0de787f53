"""The part of YAML that params.yaml needs: sections, lists, numbers, words. The rest is refused."""

from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from gliotrail.errors import ParamsError

LARGEST_BYTES: Final = 1_000_000
_DEEPEST: Final = 20
_MOST_BRACKETS: Final = 1000


def read_yaml(path: Path, limit_bytes: int = LARGEST_BYTES) -> Any:
    """Read the plain values of a YAML 1.2 file.

    Anchors are refused (a few lines can grow to gigabytes), and so are tags.

    Raises:
        ParamsError: missing, too large or deep, not UTF-8, not YAML, or more than plain values.
    """
    if not path.is_file():
        raise ParamsError("no such file", where=path, do="run from the root of the checkout")
    n_bytes = path.stat().st_size
    if n_bytes > limit_bytes:
        raise ParamsError("bytes", where=path, wanted=f"<= {limit_bytes}", got=n_bytes)
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ParamsError("not YAML", where=path, got=str(error).split("\n")[0]) from None


def parse_yaml(text: str, where: object) -> Any:
    """Read the plain values of a YAML text.

    Raises:
        ParamsError: not YAML, too deep, or more than plain values.
    """
    try:
        _check_plain(text, where)
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError, ValueError) as error:
        raise ParamsError("not YAML", where=where, got=str(error).split("\n")[0]) from None


def _check_plain(text: str, path: object) -> None:
    """Check before anything is built: the cost of building grows with the square of the depth."""
    brackets = text.count("[") + text.count("{")
    if brackets > _MOST_BRACKETS:  # YAML scans them before its first event
        raise ParamsError("brackets", where=path, wanted=f"<= {_MOST_BRACKETS}", got=brackets)
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            raise ParamsError("nested too deep", where=path, wanted=f"<= {_DEEPEST} levels")
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            got = f"anchor or alias {event.anchor}"
            raise ParamsError("YAML", where=path, wanted="plain values", got=got)
        if tag := getattr(event, "tag", None):
            raise ParamsError("YAML", where=path, wanted="plain values", got=f"tag {tag}")
