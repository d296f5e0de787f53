"""What is used of Ray that Ray doesn't promise to keep; tests/cluster/test_ray_internals.py looks.

Beside it only `fixed_scaling` and `workers._Trainer` lean on more than Ray's public interface.
"""

import logging
import os
from collections.abc import Mapping
from subprocess import Popen
from typing import Any, Final

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from gliotrail.progress import say

_RAYS_PRINT: Final = ray._private.worker.print_to_stdstream
_NO_ABORT: Final = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"


def leave_sigterm_to_us() -> None:
    """Before `ray.init`: else Ray's own handler aborts the process 3 s after a SIGTERM.

    A checkpoint may take longer.
    """
    os.environ[_NO_ABORT] = "1"  # for processes that are started from here
    setattr(ray_constants, _NO_ABORT, True)  # Ray read it when it was imported
    # it warns that a thread can't handle signals; this process handles its own
    logging.getLogger("ray._private.worker").addFilter(_is_no_warning_of_sigterm)


def _is_no_warning_of_sigterm(record: logging.LogRecord) -> bool:
    return "SIGTERM handler" not in str(record.msg)


def tell_deaths_in_one_line() -> None:
    """Before `ray.init`: of each process that dies Ray prints a page, on standard output."""
    setattr(ray._private.worker, "print_to_stdstream", _print)  # noqa: B010 - mypy knows no such


def _print(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    if data["pid"] != "raylet":
        _RAYS_PRINT(data, ignore_prefix)
        return
    say(f"Ray: {data['lines'][0].splitlines()[0].partition('. ')[0]}")


def read_token_again() -> None:
    """Ray read how to authenticate when it was imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def own_processes() -> dict[str, "Popen[bytes]"]:
    """The processes without which a Ray that was started from here is none, by their names."""
    node = ray._private.worker._global_node
    if node is None:
        return {}
    return {
        name: infos[0].process
        for name, infos in node.all_processes.items()
        if name in {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER}
    }
