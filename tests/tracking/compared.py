"""Ways to track a loop in MLflow, side by side: the same loop, the same kills.

    python -m tests.tracking.compared KIND --number 20 --seed 1 --to FILE
    python -m tests.tracking.compared table --to FILE

Each measurement is a line of JSON in FILE, and what is there already is not measured again. KIND is

- `loop`: the loop's process is killed by SIGKILL at a random moment, looked at 10 seconds later,
  and started again until it comes to its end;
- `helper`: so is the process that the tracker has beside the loop's, where it has one;
- `server`: so is MLflow's server, which is away for 2 seconds and its own start;
- `cost`: what a step's calls take with a server that is up, that answers 200 ms late, or that goes
  away for good after the first steps; and how often it is called.

Loops are forked from a process that has imported their libraries: a start costs no import.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from tests.support.projects import ROOT
from tests.support.proxy import Proxy
from tests.support.services import MlflowServer, kill_all
from tests.tracking import compared_loop
from tests.tracking.compared_files import Kept, in_mlflow, in_wandb
from tests.tracking.compared_table import table

STEPS, STEP_S, LOOKED_AT_S, SETTLED_S, SLOW_S = 60, 0.1, 10.0, 120.0, 0.2
EXPERIMENT = "compared"
LIBRARIES = {"Lightning's MLFlowLogger": "lightning", "W&B offline": "wandb"}
"""Without which a way is left out; `pip install lightning wandb` brings them."""
WITH_HELPER = {"gliotrail.track": "delivery_process", "W&B offline": "wandb-core"}
FORKED = get_context("forkserver")
PRELOADED = [
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "gliotrail.tracking.track"),
    *("lightning.pytorch.loggers", "wandb"),
]
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
}


class Loop:
    """Starts of a loop in a folder of its own."""

    def __init__(self, way: str, folder: Path, uri: str, experiment: str = EXPERIMENT) -> None:
        self.way, self.folder = way, folder
        self.env = SETTINGS | {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_EXPERIMENT_NAME": experiment,
            "GLIOTRAIL_STATE": str(folder / "state"),
        }
        self.failed = 0

    def start(self, step_s: float = STEP_S) -> Any:
        """Its process."""
        (self.folder / "began").unlink(missing_ok=True)
        words = (self.way, self.folder, self.env, STEPS, step_s)
        process = FORKED.Process(target=compared_loop.main, args=words)
        process.start()
        return process

    def until_began(self, process: Any) -> None:
        """Until it is at its steps, or at its end."""
        while process.is_alive() and not (self.folder / "began").exists():
            time.sleep(0.01)

    def to_its_end(self, process: Any = None) -> None:
        """Started again until it comes there."""
        for _ in range(5):
            process = process or self.start()
            process.join(900)
            if process.exitcode == 0:
                return
            self.failed, process = self.failed + 1, None

    def took(self) -> dict[str, Any]:
        """Of the last start."""
        return dict(json.loads((self.folder / "took.json").read_text()))


def store(folder: Path) -> str:
    """An empty database, made before anything is killed."""
    (folder / "mlflow.db").write_bytes(_empty())
    return f"sqlite:///{folder}/mlflow.db"


@cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        make = "import mlflow; mlflow.MlflowClient().search_experiments()"
        env = os.environ | SETTINGS | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        subprocess.run([sys.executable, "-c", make], cwd=folder, env=env, check=True)
        return (Path(folder) / "mlflow.db").read_bytes()


def kept(way: str, folder: Path, uri: str, experiment: str = EXPERIMENT) -> Kept:
    """What there is of a loop."""
    if way == "W&B offline":
        return in_wandb(folder, STEPS)
    return in_mlflow(uri, experiment, STEPS)


def until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came to be so."""
    ends = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > ends:
            return False
        time.sleep(0.25)
    return True


def settled(way: str, folder: Path, uri: str, experiment: str = EXPERIMENT) -> Kept:
    """What there is once what is late has come, too."""
    if way != "W&B offline":
        until(lambda: kept(way, folder, uri, experiment).statuses == ["FINISHED"], SETTLED_S)
    return kept(way, folder, uri, experiment)


def of_loop(way: str, moment: float) -> dict[str, Any]:
    """One kill of the loop's process, at a share of its steps' time."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        uri = store(folder)
        loop = Loop(way, folder, uri)
        process = loop.start()
        loop.until_began(process)
        time.sleep(moment * STEPS * STEP_S)
        process.kill()
        process.join()
        running = not until(lambda: "RUNNING" not in kept(way, folder, uri).statuses, LOOKED_AT_S)
        loop.to_its_end()
        seen = settled(way, folder, uri).told
        return seen | {"running_after": running, "failed_starts": loop.failed}


def of_helper(way: str, moment: float) -> dict[str, Any]:
    """One kill of the tracker's own process beside the loop."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        uri = store(folder)
        loop = Loop(way, folder, uri)
        step_s = 2 * STEP_S  # so that it is up and at work in most of that time
        process = loop.start(step_s)
        loop.until_began(process)
        time.sleep(moment * STEPS * step_s)
        helpers = [
            each for each in psutil.Process(process.pid).children(recursive=True)
            if WITH_HELPER[way] in " ".join(each.cmdline())
        ]  # fmt: skip
        for helper in helpers:
            helper.kill()
        loop.to_its_end(process)
        seen = settled(way, folder, uri).told
        return seen | {"killed": len(helpers), "failed_starts": loop.failed}


def of_server(ways: list[str], moment: float) -> dict[str, dict[str, Any]]:
    """One kill of a server that all ways' loops lean on."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        top, step_s, found = Path(name), 2 * STEP_S, {}
        server = MlflowServer(top / "server.log", store(top), top / "artifacts")
        server.start()
        server.wait()
        try:
            loops = {}
            for number, way in enumerate(ways):
                (top / str(number)).mkdir()
                loops[way] = Loop(way, top / str(number), server.uri, f"of-{number}")
            processes = {way: loop.start(step_s) for way, loop in loops.items()}
            for way, loop in loops.items():
                loop.until_began(processes[way])
            time.sleep(moment * STEPS * step_s)
            server.kill()
            time.sleep(2)
            server.start()
            for way, loop in loops.items():
                loop.to_its_end(processes[way])
            server.wait()
            uri = f"sqlite:///{top}/mlflow.db"
            for number, way in enumerate(ways):
                found[way] = settled(way, top, uri, f"of-{number}").told | {
                    "failed_starts": loops[way].failed,
                    "blocked_s": sum(took for took, _ in loops[way].took()["steps"]),
                }
            return found
        finally:
            server.kill()


class SlowProxy(Proxy):
    """Each answer comes later; once it is away, none does."""

    away = False

    def _ask(self, handler: Any, body: bytes) -> tuple[int, str, bytes]:
        answer = super()._ask(handler, body)
        time.sleep(self.late_s)
        return answer

    def _serve(self, handler: Any, body: bytes, fault: str) -> None:
        super()._serve(handler, body, "lost before" if self.away else fault)

    def go_away(self) -> None:
        """Connections that are open are closed when they are used, new ones are refused."""
        self.away = True
        self.close()


@contextmanager
def a_server() -> Iterator[MlflowServer]:
    """For several ways, one after another."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = MlflowServer(folder / "server.log", store(folder), folder / "artifacts")
        server.start()
        try:
            server.wait(1200)
            yield server
        finally:
            server.kill()


def of_cost(way: str, state: str, server: MlflowServer) -> dict[str, Any]:
    """One run of the loop, and its calls of the server."""
    proxy = SlowProxy(server.uri, SLOW_S if state == "slow" else 0.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, began_s = Path(name), time.monotonic()
        loop = Loop(way, folder, proxy.uri)
        process = loop.start()
        loop.until_began(process)
        if state == "away":
            time.sleep(STEPS * STEP_S / 4)
            proxy.go_away()
        process.join(600)
        ended = process.exitcode if not process.is_alive() else "still at it after 600 s"
        kill_all(process.pid)
        content = loop.took()
        proxy.go_away()
        return content | {
            "exit": ended, "whole_s": time.monotonic() - began_s,
            "calls": sum(proxy.calls.values()), "kinds": dict(proxy.calls),
        }  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", nargs="+")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    kind, to = options.kind, options.to
    lines = [json.loads(line) for line in to.read_text().splitlines()] if to.exists() else []
    if kind == "table":
        print(table(lines))
        return
    os.environ |= SETTINGS
    FORKED.set_forkserver_preload(PRELOADED)
    there = {(line["kind"], line["way"], line["number"], line["seed"]) for line in lines}

    def note(way: str, number: int, seen: dict[str, Any]) -> None:
        told = {"kind": kind, "way": way, "number": number, "seed": options.seed} | seen
        with to.open("a") as file:
            file.write(json.dumps(told) + "\n")
        print(
            {key: value for key, value in told.items() if key not in {"steps", "kinds"}}, flush=True
        )

    def left(ways: list[str], number: int) -> list[str]:
        can = [way for way in ways if way not in LIBRARIES or find_spec(LIBRARIES[way])]
        return [way for way in can if (kind, way, number, options.seed) not in there]

    moments = [random.Random(f"{options.seed} {n}").random() for n in range(options.number)]
    _empty()
    if kind == "cost":
        with a_server() as server:
            for number, state in enumerate(("up", "slow", "away")):
                for way in left(options.ways or list(compared_loop.WAYS), number):
                    note(way, number, {"state": state} | of_cost(way, state, server))
        return
    for number, moment in enumerate(moments):
        ways = options.ways or [*(WITH_HELPER if kind == "helper" else compared_loop.WAYS)]
        ways = left([way for way in ways if kind != "server" or way != "W&B offline"], number)
        if kind == "server" and ways:
            for way, seen in of_server(ways, moment).items():
                note(way, number, seen)
        elif ways:
            one = of_loop if kind == "loop" else of_helper
            with ThreadPoolExecutor(3) as pool:
                seen_of = {way: pool.submit(one, way, moment) for way in ways}
                for way, coming in seen_of.items():
                    note(way, number, coming.result())


if __name__ == "__main__":
    main()
