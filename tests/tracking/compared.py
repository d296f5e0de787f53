"""Ways to track a loop in MLflow, side by side: the same loop, the same kills.

    python -m tests.tracking.compared KIND --number 20 --seed 1 --to FILE
    python -m tests.tracking.compared table --to FILE

Each measurement is a line of JSON in FILE, and what is there already is not measured again. KIND is

- `loop`: the loop's process is killed by SIGKILL at a random moment, looked at 10 seconds later,
  and started again until it comes to its end;
- `helper`: so is the process that the tracker has beside the loop's, where it has one;
- `server`: so is MLflow's server, which is away for 2 seconds and its own start;
- `worker`, `driver`, `tune-server`: so are a trial's process in a sweep of Ray Tune, the process
  that called the Tuner, and MLflow's server beside one;
- `cost`: what a step's calls take with a server that is up, that answers 200 ms late, or that goes
  away for good after the first steps; and how often it is called. Timings: of a quiet machine only.

Loops are forked from a process that has imported their libraries: a start costs no import.
"""

import argparse
import json
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.tracking import compared_cost, compared_kills, compared_loop, compared_sweeps
from tests.tracking.compared_support import AWAY_S, FORKED, SETTINGS, a_server, empty
from tests.tracking.compared_table import table
from tests.tracking.compared_tune import WAYS as OF_TUNE

LIBRARIES = {"Lightning's MLFlowLogger": "lightning", "W&B offline": "wandb"}
"""Without which a way is left out; `pip install lightning wandb` brings them."""
OF_LOOP = list(compared_loop.WAYS)
WITH_SERVER = [way for way in OF_LOOP if way != "W&B offline"]
WAYS = {
    "loop": OF_LOOP, "helper": list(compared_kills.WITH_HELPER), "server": WITH_SERVER,
    "worker": list(OF_TUNE), "driver": list(OF_TUNE), "tune-server": list(OF_TUNE),
    "cost": [*OF_LOOP, *OF_TUNE],
}  # fmt: skip
A_SWEEP = 5
PRELOADED = ["mlflow", "mlflow.store.tracking.sqlalchemy_store", "gliotrail.tracking.track"]
PRELOADED_SERVER = ["mlflow.server.fastapi_app", "uvicorn"]
PRELOADED_LOOP = ["lightning.pytorch.loggers", "wandb"]
PRELOADED_TUNE = ["ray.tune", "ray.air.integrations.mlflow", "gliotrail.integrations.ray_tune"]


class Measuring:
    """What is measured already, and what comes to it."""

    def __init__(self, kind: str, seed: int, ways: list[str], to: Path) -> None:
        self._kind, self._seed, self._to = kind, seed, to
        self._ways = [way for way in ways if way not in LIBRARIES or find_spec(LIBRARIES[way])]
        texts = to.read_text().splitlines() if to.exists() else []
        self.lines = [json.loads(text) for text in texts]

    def left(self, number: int) -> list[str]:
        """The ways of which this measurement is not there."""
        there = {(of["kind"], of["way"], of["number"], of["seed"]) for of in self.lines}
        return [way for way in self._ways if (self._kind, way, number, self._seed) not in there]

    def note(self, way: str, number: int, seen: dict[str, Any]) -> None:
        """One more."""
        told = {"kind": self._kind, "way": way, "number": number, "seed": self._seed} | seen
        with self._to.open("a") as file:
            file.write(json.dumps(told) + "\n")
        print({k: v for k, v in told.items() if k not in {"steps", "kinds"}}, flush=True)


def at_once(ways: list[str], one: Callable[[str], Any]) -> dict[str, Any]:
    """Of several ways, each in its own thread."""
    with ThreadPoolExecutor(max(1, len(ways))) as pool:
        coming = {way: pool.submit(one, way) for way in ways}
        return {way: seen.result() for way, seen in coming.items()}


def kills_of_loops(kind: str, measuring: Measuring, moments: list[float]) -> None:
    """Of the loop's process, or of its tracker's beside it."""
    one = compared_kills.of_loop if kind == "loop" else compared_kills.of_helper
    for number, moment in enumerate(moments):
        left = measuring.left(number)
        for three in (left[:3], left[3:]):
            for way, seen in at_once(three, partial(one, moment=moment)).items():
                measuring.note(way, number, seen)


def kills_of_servers(measuring: Measuring, moments: list[float], away_s: float) -> None:
    """All ways at once, as one server is killed for all."""
    with a_server() as server:
        for number, moment in enumerate(moments):
            if left := measuring.left(number):
                found = compared_kills.of_server(server, left, number, moment, away_s)
                for way, seen in found.items():
                    measuring.note(way, number, seen)


def kills_in_sweeps(kind: str, measuring: Measuring, moments: list[float]) -> None:
    """Some in each sweep: one in each trial. All ways at once."""
    compared_sweeps.address()
    for first in range(0, len(moments), A_SWEEP):
        these = moments[first : first + A_SWEEP]
        left = measuring.left(first)
        if kind == "tune-server" and left:
            with a_server() as server:
                found = compared_sweeps.of_tune_server(server, left, first, these)
        else:
            one = partial(compared_sweeps.of_sweep, moments=these, of_driver=kind == "driver")
            found = at_once(left, one)
        for way, trials in found.items():
            for number, seen in enumerate(trials, first):
                measuring.note(way, number, seen)


def costs(measuring: Measuring) -> None:
    """One way after another; with a server that is away, all at once: most of them wait for it."""
    compared_sweeps.address()
    with a_server() as server:
        for number, state in enumerate(("up", "slow", "away")):
            left = measuring.left(number)
            one = partial(compared_cost.of_cost, state=state, server=server)
            for ways in [left] if state == "away" else [[way] for way in left]:
                for way, seen in at_once(ways, one).items():
                    measuring.note(way, number, seen)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=[*WAYS, "table"])
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", nargs="+")
    parser.add_argument("--away-s", type=float, default=AWAY_S, help="of the server")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    kind = options.kind
    measuring = Measuring(kind, options.seed, options.ways or WAYS.get(kind, []), options.to)
    if kind == "table":
        print(table(measuring.lines))
        return
    os.environ |= SETTINGS
    with_ray = set(WAYS[kind]) & set(OF_TUNE)
    with_loops = set(WAYS[kind]) & set(OF_LOOP)
    with_server = kind in {"server", "tune-server", "cost"}
    FORKED.set_forkserver_preload(
        PRELOADED
        + PRELOADED_SERVER * with_server
        + PRELOADED_TUNE * bool(with_ray)
        + PRELOADED_LOOP * bool(with_loops)
    )
    moments = [random.Random(f"{options.seed} {n}").random() for n in range(options.number)]
    empty()
    if kind == "cost":
        costs(measuring)
    elif kind == "server":
        kills_of_servers(measuring, moments, options.away_s)
    elif kind in {"worker", "driver", "tune-server"}:
        kills_in_sweeps(kind, measuring, moments)
    else:
        kills_of_loops(kind, measuring, moments)


if __name__ == "__main__":
    main()
