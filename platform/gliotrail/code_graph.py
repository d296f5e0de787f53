"""The code that decides a result: a module, and all of the package that it imports.

The same graph names the code that a stage of dvc.yaml depends on (`make deps` writes it there), and
gives the code's part of the hash that identifies a training or a prepared case.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parent
RESULT_ROOMS: Final = ("dataset", "params", "imaging", "synthesis", "segmentation", "training")
"""The rooms that can change a model's weights. The others store, show or schedule."""
_EMPTY_PACKAGES: Final = (PACKAGE.name, "pipelines")


def imported_by(module: str, roots: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """A module and all that it imports, directly and through others, with their files.

    Imports inside functions count, those for type checkers alone don't, nor do our packages' own
    files (`__init__.py`), which hold no code.

    Args:
        module: its dotted name.
        roots: the top modules and packages that are followed; by default gliotrail alone.
    """
    roots = {PACKAGE.name: PACKAGE} if roots is None else roots
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name, roots)
        if path is not None and name not in found:
            found[name] = path
            waiting += _imports(path, name)
    return dict(sorted(found.items()))


def result_code(module: str, *more: Path) -> str:
    """One hash of the code that decides a module's results, without comments and docstrings.

    Args:
        more: files outside the package that count as well.
    """
    prefixes = tuple(f"{PACKAGE.name}.{room}" for room in RESULT_ROOMS)
    files = [path for name, path in imported_by(module).items() if name.startswith(prefixes)]
    return code_hash([*files, *more])


def code_hash(files: Iterable[Path]) -> str:
    """One hash of Python files' code: file names, comments and docstrings don't change it."""
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else Path(path.name)
        digest.update(name.as_posix().encode() + b"\0" + _meaning(path).encode() + b"\0")
    return digest.hexdigest()


@cache
def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a lone string, such as a docstring, does nothing
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _file(name: str, roots: Mapping[str, Path]) -> Path | None:
    """A module's file; None for a package of ours, a name within a module, or other code."""
    top, *rest = name.split(".")
    if top not in roots:
        return None
    path = roots[top].joinpath(*rest)
    files = [path.with_suffix(".py")]
    if top not in _EMPTY_PACKAGES:
        files.append(path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@cache
def _imports(path: Path, module: str) -> tuple[str, ...]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    # a package's own file runs before any module in it
    return (package, *_names(ast.parse(path.read_bytes()), package))


def _names(node: ast.AST, package: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - child.level + 1]
            base = ".".join([*(above if child.level else []), *filter(None, [child.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in child.names)
        else:
            yield from _names(child, package)
