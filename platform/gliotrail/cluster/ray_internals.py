"""Our uses of Ray's private interface, besides `fixed_scaling` and `workers._Trainer`."""

import inspect
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

import psutil
import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config, persist_port  # type: ignore[attr-defined]

from gliotrail.progress import say

_RAYS_PRINT: Final = ray._private.worker.print_to_stdstream
_RAYS_GET_NODE: Final[Callable[..., Any]] = services.get_node
_RAYS_START: Final[Callable[..., Any]] = services.start_raylet
_PORTS_OF_AGENTS: Final = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
_NO_ABORT: Final = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"


def leave_sigterm_to_us() -> None:
    """Before `ray.init`: no abort 3 s after a SIGTERM, since a checkpoint may take longer."""
    os.environ[_NO_ABORT] = "1"  # for processes that are started from here
    setattr(ray_constants, _NO_ABORT, True)  # Ray read it when it was imported
    # Ray warns that a thread can't handle signals; this process has its own handler
    logging.getLogger("ray._private.worker").addFilter(
        lambda record: "SIGTERM handler" not in str(record.msg)
    )


def tell_deaths_in_one_line() -> None:
    """Before `ray.init`: otherwise Ray prints a page for each dead process, on standard output."""
    setattr(ray._private.worker, "print_to_stdstream", _print)  # noqa: B010 - mypy knows no such


def _print(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    if data["pid"] != "raylet":
        _RAYS_PRINT(data, ignore_prefix)
        return
    say(f"Ray: {data['lines'][0].splitlines()[0].partition('. ')[0]}")


def read_token_again() -> None:
    """Make Ray read its authentication settings again: it read them when it was imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def wait_longer_for_a_raylet(most_s: float) -> None:
    """Before `ray.init`, whose raylet must register within 30 s: a busy machine takes longer."""

    def get_node(*words: Any, **more: Any) -> Any:
        ends_s = time.monotonic() + most_s
        while True:
            try:
                return _RAYS_GET_NODE(*words, **more)
            except RuntimeError:  # not registered yet
                if time.monotonic() > ends_s or not (_of_ray("raylet") and _of_ray("gcs_server")):
                    raise
                time.sleep(0.2)

    services.get_node = get_node


def tell_a_raylet_its_agents_ports() -> None:
    """Before `ray.init`: a raylet ends itself if an agent's port is not in a file within 15 s.

    An agent is a Python process that writes that file after its imports, which take longer on a
    busy machine. Here the ports are chosen and written before the processes start.
    """
    named = inspect.signature(_RAYS_START).bind

    def start(*words: Any, **more: Any) -> Any:
        of = named(*words, **more | dict(zip(_PORTS_OF_AGENTS, _free_ports(), strict=True)))
        for name in _PORTS_OF_AGENTS:
            persist_port(of.arguments["session_dir"], of.arguments["node_id"], name,
                         of.arguments[name])  # fmt: skip
        return _RAYS_START(*of.args, **of.kwargs)

    services.start_raylet = start


def _free_ports() -> list[int]:
    with ExitStack() as held:  # all open at once, so that no port comes twice
        sockets = [held.enter_context(socket.socket()) for _ in _PORTS_OF_AGENTS]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _of_ray(name: str = "") -> list[psutil.Process]:
    """Ray's own living processes below this one."""
    package, found = str(Path(ray.__file__).parent), []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # a zombie has no command line
            if any(package in word for word in each.cmdline()) and name in {"", each.name()}:
                found.append(each)
    return found


def end_what_a_start_left() -> None:
    """After a failed `ray.init`: end the processes that Ray leaves running."""
    left = _of_ray()
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(left, 10)


def own_processes() -> dict[str, "Popen[bytes]"]:
    """The essential processes of a Ray that was started from here, by their names."""
    node: Any = ray._private.worker._global_node
    return {
        name: infos[0].process
        for name, infos in (node.all_processes if node else {}).items()
        if name in {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER}
    }
