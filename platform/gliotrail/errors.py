"""The exception tree. Every error a user can cause is one line: where, what, wanted, got, do.

>>> str(DataError("shape", where="labelsTr/A.nii.gz", wanted="(240, 240, 50)", got="(240, 240)"))
'labelsTr/A.nii.gz: shape: wanted (240, 240, 50), got (240, 240)'
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from typing import Any, Final, NoReturn

_LONGEST: Final = 500
_NO_MEMORY: Final = ("can't allocate memory", "out of memory")  # PyTorch's words


class GliotrailError(Exception):
    """An error that the user can fix, in one line.

    Args:
        what: the thing that is wrong, such as "label shape".
        where: the file, key or address it was found in.
        wanted: what would have been right.
        got: what was there.
        do: what to do about it.
    """

    _is_told = False

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        wanted: object = None,
        got: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.wanted, self.got, self.do = what, where, wanted, got, do
        line = f"{where}: {_short(what)}" if where is not None else _short(what)
        parts = [f"wanted {_short(wanted)}"] if wanted is not None else []
        parts += [f"got {_short(got)}"] if got is not None else []
        line += f": {', '.join(parts)}" if parts else ""
        line += f"; {do}" if do else ""
        # names from data may hold a terminal's control characters
        super().__init__("".join(c if c.isprintable() else "?" for c in " ".join(line.split())))

    def tell(self) -> None:
        """Print it, once, in the same way as `one_line_errors` does at the process's end."""
        if not self._is_told:
            self._is_told = True
            sys.stderr.write(f"error: {self}\n")
            sys.stderr.flush()

    def __reduce__(self) -> tuple[Any, ...]:  # pickling passes no keyword-only arguments by itself
        more = partial(type(self), where=self.where, wanted=self.wanted, got=self.got, do=self.do)
        return more, (self.what,)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class ParamsError(GliotrailError):
    """params.yaml, a command's option or an environment variable is not usable."""


class DataError(GliotrailError):
    """A scan, a label, a dataset or a downloaded file is not usable."""


class WeightsError(GliotrailError):
    """Stored weights do not fit the network, the channels or the classes."""


class TrainingError(GliotrailError):
    """Training can't continue: a loss that is not a number, no patches, no validation."""


class TrackingError(GliotrailError):
    """A run, a model version or the tracking server is missing or broken."""


class ClusterError(GliotrailError):
    """Ray can't give the resources, or fails."""


class Stopped(GliotrailError):  # noqa: N818 - nothing went wrong
    """A run was stopped on request, with a checkpoint. `code` is the process's exit code."""

    @property
    def code(self) -> int:
        """The exit code that a shell reports for the signal: 130 for SIGINT, 143 for SIGTERM."""
        return 130 if "Ctrl-C" in self.what else 143


@contextmanager
def one_line_errors(kept: str = "finished work stays; the same command goes on") -> Iterator[None]:
    """End the process with exit code 1 and one line, without a traceback.

    This holds for a GliotrailError, errors of the machine (disk, memory, permission), a library of
    an extra that is not installed, and Ctrl-C (exit code 130, with `kept`).
    """
    try:
        yield
    except GliotrailError as error:
        error.tell()
        raise SystemExit(error.code if isinstance(error, Stopped) else 1) from None
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if (extra := _extra_with(missing)) is None:
            raise
        _end(f"{missing} is not installed: `pip install 'gliotrail[{extra}]'`")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _end(f"{place}{error.strerror or error}; the same command goes on once that is mended")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(s in str(error) for s in _NO_MEMORY):
            raise
        _end("there is not enough memory; the same command goes on once there is")
    except KeyboardInterrupt:
        _end(f"stopped by Ctrl-C; {kept}", 130)


def _extra_with(module: str) -> str | None:
    """The smallest extra of pyproject.toml that installs a module, if one does."""
    packages: dict[str, set[str]] = {}
    for line in metadata.requires("gliotrail") or []:
        if found := re.match(r"([\w-]+).*extra == ['\"](\w+)['\"]", line):
            packages.setdefault(found[2], set()).add(found[1].replace("-", "_"))
    extras = [extra for extra, names in packages.items() if module in names]
    return min(extras, key=lambda extra: len(packages[extra]), default=None)


def _end(line: str, code: int = 1) -> NoReturn:
    sys.stderr.write(f"error: {line}\n")
    raise SystemExit(code) from None
