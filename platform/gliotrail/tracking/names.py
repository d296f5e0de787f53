"""Names that MLflow accepts, different for different names."""

import hashlib
import posixpath
import re
from functools import cache
from typing import Final

from gliotrail.progress import say

_FINE: Final = re.compile(r"[/\w.\- :]+")
_LONGEST: Final = 250


@cache  # each is reported once
def mlflow_name(name: str) -> str:
    """The name itself, if MLflow accepts it; else with `_` for refused characters, and a hash."""
    is_path = posixpath.normpath(name) == name and not name.startswith((".", "/"))
    if _FINE.fullmatch(name) and len(name) <= _LONGEST and is_path:
        return name
    number = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    made = re.sub(r"[^\w\- :]", "_", name)[: _LONGEST - 9] + f".{number}"
    say(f"{name!r} is called {made!r} in MLflow, which does not take that name")
    return made
