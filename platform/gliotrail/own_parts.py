"""Parts of your own: networks, losses, changes of patches and measures, from the folder `own`.

The folder is at the top of a checkout (in a registered model beside the package):
`my_package.nets:Small` is the class Small of own/my_package/nets.py. Names in params or in a
weights file never import code from anywhere else.
"""

import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gliotrail.code_graph import PACKAGE, imported_by
from gliotrail.errors import GliotrailError, ParamsError

OWN: Final = "own"


def is_own(name: str) -> bool:
    """Whether a name in params is one of yours: `module:name`."""
    return ":" in name


def short_name(name: str) -> str:
    """A part's name in metrics: `my_package.losses:tversky` is tversky."""
    return name.rpartition(":")[2]


def own_folder() -> Path:
    """The folder of your own parts."""
    places = (PACKAGE.parents[1] / OWN, PACKAGE.parent / OWN)
    return next((place for place in places if place.is_dir()), places[0])


def own_part(name: str, key: str) -> Any:
    """Import the part that a name means.

    Args:
        key: of params, for messages.

    Raises:
        ParamsError: there is no such file or name, it can't be imported, or another module that
            is installed has its name.
    """
    module, _, attribute = name.partition(":")
    folder = own_folder()
    paths = [folder.joinpath(*module.split(".")).with_suffix(".py")]
    paths.append(paths[0].with_suffix("") / "__init__.py")
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ParamsError(f"{key}: {name}", where=paths[0], wanted="a file", got="none")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: it hides no other module
    with tried(f"{key}: {name}", "a module", path):
        found = importlib.import_module(module)
    if not found.__file__ or Path(found.__file__).resolve() != path.resolve():
        got = f"{found.__file__}, which has the same name"
        raise ParamsError(f"{key}: {name}", where=path, got=got, do="rename yours")
    if not hasattr(found, attribute):
        here = ", ".join(name for name in vars(found) if not name.startswith("_"))
        raise ParamsError(f"{key}: {name}", where=path, wanted=attribute, got=here)
    return getattr(found, attribute)


@contextmanager
def tried(what: str, wanted: str, where: object = None) -> Iterator[None]:
    """Turn any error of your part into one line.

    Raises:
        ParamsError: your part raised.
    """
    try:
        yield
    except GliotrailError:
        raise
    except Exception as error:  # noqa: BLE001
        got = f"{type(error).__name__}: {error}"
        raise ParamsError(what, where=where, wanted=wanted, got=got) from None


def own_files(names: Iterable[str]) -> list[Path]:
    """The files of your own parts among these names, and all files of `own` that they import."""
    folder = own_folder()
    places = folder.iterdir() if folder.is_dir() else ()
    roots = {place.stem: place.with_suffix("") for place in places}
    found: dict[str, Path] = {}
    for name in filter(is_own, names):
        found |= imported_by(name.partition(":")[0], roots)
    return sorted(found.values())
