"""`python -m tests.tracking.kills --kills N --seed S`: N kills, in pieces; each is written down.

It goes on where it was stopped: kill number n of a seed is the same whenever it comes. MLflow's
database is read by SQL. Without Ray: a tracked process, `gliotrail runs sync`, deliveries and
evaluations. Under Ray (see `ray_kills`): trainings and sweeps.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from gliotrail.paths import state_dir
from gliotrail.progress import say
from gliotrail.runs.journal import RunFolder
from gliotrail.tracking import registry
from gliotrail.tracking.client import client
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.reaper import reap_all
from gliotrail.tracking.sync import sync_all
from tests.support.environment import in_state
from tests.tracking import tracked_process
from tests.tracking.chaos import moment_of
from tests.tracking.killed import FAULTS, Killed, compare, forked
from tests.tracking.killed_deliveries import (
    die_before,
    in_a_process,
    with_a_model_left,
    with_points,
)
from tests.tracking.test_evaluation_record import record, trained

PER_ROUND = 5
CALLS = {"delivery": 26, "evaluation": 34}
"""About how many calls each makes; a later one than the last kills nobody, and is not counted."""


def a_delivery(root: Path, source: random.Random) -> Iterator[Killed]:
    """Killed before one of its calls to MLflow; the next one tells what is left."""
    made = source.choice([with_points, with_a_model_left])(root / "runs/one")

    def compared() -> dict[str, int]:
        deliver(made, client())
        return compare(made)

    yield from _before_a_call("delivery", root, source, lambda: deliver(made, client()), compared)


def an_evaluation(root: Path, source: random.Random) -> Iterator[Killed]:
    """The same of what an evaluation adds."""
    run, says = trained(source.randint(1, 10**6), score=0.5)
    deliver(run, client())

    def compared() -> dict[str, int]:
        record(run, says)
        return compare(run, {"versions": [1], "outputs": 1})

    yield from _before_a_call("evaluation", root, source, lambda: record(run, says), compared)


def _before_a_call(
    victim: str,
    root: Path,
    source: random.Random,
    work: Callable[[], object],
    compared: Callable[[], dict[str, int]],
) -> Iterator[Killed]:
    n, last = source.randint(1, CALLS[victim]), root / "last call"

    def broken_off() -> None:
        die_before(n, last)
        work()

    code = in_a_process(broken_off)
    faults = compared()
    if code:
        yield Killed(victim, f"before {last.read_text()}", faults)
    else:
        assert not faults, faults


def a_process(root: Path, source: random.Random) -> Iterator[Killed]:
    """A tracked process, and syncs beside it; after each kill the run is KILLED, at last FINISHED.

    All that asks MLflow is forked, so that none is forked from what has a connection open.
    """
    run, killed, faults = RunFolder(root / "runs/one"), [], Counter[str]()
    for _ in range(PER_ROUND):
        victims = {"tracked process": forked(lambda: tracked_process.main(run.root, 0.03, 10**6))}
        if source.random() < 0.4:
            time.sleep(source.uniform(0, 2))
            victims["gliotrail runs sync"] = forked(sync_all)
        for victim, pid in victims.items():
            time.sleep(source.uniform(0, 2))
            moment = moment_of(run)
            os.kill(pid, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL:
                killed.append((victim, moment))
        if in_a_process(lambda: _settle(run, "KILLED")):
            faults["status"] += 1
    (run.root / "enough").touch()
    ended = in_a_process(lambda: tracked_process.main(run.root, 0.0, 10**6))
    faults["status"] += ended != 0
    result = root / "faults.json"
    in_a_process(lambda: result.write_text(json.dumps(_settle(run, "FINISHED") or {})))
    faults.update(json.loads(result.read_text()))
    wrong = [p for p in run.points() if p.value != tracked_process.value(p.step)]
    faults["wrong"] += len(wrong) + (len(run.points()) != run.history()[-1].step)
    found = {name: n for name, n in faults.items() if n}
    yield from (Killed(victim, moment, found) for victim, moment in killed)


def _settle(run: RunFolder, status: str) -> dict[str, int]:
    """All that is left is delivered; nothing may be amiss then."""
    if not run.has_begun():
        return {}
    reap_all()
    assert sync_all()[1] == {}
    assert (run.ended() or {}).get("status") == status, run.ended()
    faults = compare(run)
    assert not faults, faults
    return faults


Kind = Callable[[Path, random.Random], Iterator[Killed]]
KINDS: Mapping[str, Kind] = {
    "delivery": a_delivery, "evaluation": an_evaluation, "process": a_process,
}  # fmt: skip
UNDER_RAY = ("training by one", "training by two", "asha", "pbt")


def kind_of(name: str) -> Kind:
    """What of a name does a round."""
    if name in KINDS:
        return KINDS[name]
    from tests.tracking import ray_kills  # seconds of imports

    return ray_kills.KINDS[name]


def one_round(seed: int, n: int, kind: str, shared: Path) -> list[Killed]:
    """The n-th of a seed, in a folder of its own, in a process of its own.

    Args:
        shared: a folder with an empty database of MLflow's, and crops.
    """
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        root = Path(place) / "state"
        root.mkdir()
        shutil.copy(shared / "mlflow.db", root)
        if (shared / "crops").is_dir():
            shutil.copytree(shared / "crops", Path(place) / "crops")
        in_state(root, patch)
        round_of = kind_of(kind)  # imported before it is forked
        patch.setattr(registry, "NO_MODEL_NEEDS", ("*.py",))  # files, each stored like the others
        told = Path(place) / "told.json"

        def work() -> None:
            found = list(round_of(root, random.Random(f"{seed} {n} {kind}")))
            told.write_text(json.dumps([asdict(killed) for killed in found]))

        assert in_a_process(work) == 0, f"seed {seed}, round {n}, {kind}"
        return [Killed(**each) for each in json.loads(told.read_text())]


def table(kills: list[Killed]) -> str:
    """Kind of victim by kind of moment, as Markdown."""
    rows = Counter((k.victim, k.moment) for k in kills)
    amiss: dict[tuple[str, str], Counter[str]] = {}
    for k in kills:
        amiss.setdefault((k.victim, k.moment), Counter()).update(k.faults)
    lines = [
        f"| killed | when | times | {' | '.join(FAULTS)} |",
        f"|---|---|---{'|---' * len(FAULTS)}|",
    ]
    for (victim, moment), times in sorted(rows.items()):
        cells = " | ".join(str(amiss[victim, moment][name]) for name in FAULTS)
        lines.append(f"| {victim} | {moment} | {times} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Go on until there are so many."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=None, help="where kills are written down")
    parser.add_argument("--minutes", type=float, default=1e6, help="of this piece")
    parser.add_argument("--kinds", default=",".join([*KINDS, *UNDER_RAY]))
    options = parser.parse_args()
    log = options.log or state_dir() / "chaos" / f"{options.seed}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines() if log.is_file() else []
    rounds = [json.loads(line) for line in lines]
    kills = [Killed(**each) for of in rounds for each in of]
    kinds = options.kinds.split(",")
    shared = log.parent / "shared"
    shared.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        in_state(shared, patch)
        assert in_a_process(client) == 0
        if {*kinds} & {*UNDER_RAY} and not (shared / "crops/patch").is_dir():
            from tests.support.crops import make_crops  # as above

            assert in_a_process(lambda: make_crops(shared / "crops")) == 0
        ends_s = time.monotonic() + 60 * options.minutes
        while len(kills) < options.kills and time.monotonic() < ends_s:
            n = len(rounds)
            found = one_round(options.seed, n, kinds[n % len(kinds)], shared)
            rounds.append(found)
            kills += found
            with log.open("a") as file:
                file.write(json.dumps([asdict(killed) for killed in found]) + "\n")
            faults = sum(sum(k.faults.values()) for k in kills)
            if faults or len(kills) % 25 < len(found):
                say(f"{len(kills)} kills, {faults} faults")
    sys.stdout.write(f"{table(kills)}\n\n{len(kills)} kills, seed {options.seed}\n")
    sys.stdout.flush()
    os._exit(int(any(k.faults for k in kills)))


if __name__ == "__main__":
    main()
