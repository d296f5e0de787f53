"""Population-based training (Jaderberg et al. 2017, arXiv:1711.09846), and its log.

At the end of each epoch the worst 1 in `reduction` members copy the whole state (weights, moments,
average) of one of the best members, and continue with slightly changed values. Decisions wait until
all members are there, so they depend on scores and seed alone, never on timing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from gliotrail.files import csv_bytes, parsed_rows, write_durably
from gliotrail.runs.writer import Writer
from gliotrail.search.proposals import Proposals, Trial
from gliotrail.search.space import Point

GOES_ON: Final = "goes on"
TAKES_OVER: Final = "takes over"
_DRAWN_ANEW: Final = 0.25
_FACTORS: Final = (0.8, 1.2)


@dataclass(frozen=True)
class Decision:
    """The decision about a member after an epoch; `value` is its score.

    source: the member whose state it takes over, if any.
    before, after: the values until then, and from then on.
    """

    order: int
    trial: str
    epoch: int
    value: float
    decision: str
    source: str
    before: Point
    after: Point


class Population:
    """A sweep's trials as a population; an interrupted sweep continues from its log.

    log: a CSV file.
    """

    def __init__(self, proposals: Proposals, log: Path) -> None:
        self._proposals, self._log = proposals, log
        self._members = {trial.name: trial for trial in proposals.trials}
        self._running: set[str] = set()
        self.decisions = list(parsed_rows(log, _parse))

    def parts(self) -> Iterator[Trial | None]:
        """The next members to train, an epoch each; None while others must finish theirs first."""
        epochs = self._proposals.space.sweep.epochs
        for epoch in range(1, epochs + 1):
            for name, member in self._members.items():
                if len(member.by_epoch()) == epoch - 1:  # fewer: it failed
                    self._running.add(name)
                    yield self.member(member, epoch)
            while self._running:
                yield None
            if not all(len(m.by_epoch()) >= epoch or _failed(m) for m in self._members.values()):
                return  # stopped on the way
            if epoch < epochs:
                self.decide(epoch)

    def came_back(self, trial: Trial) -> None:
        """Note that a part has ended, in whatever way."""
        self._running.discard(trial.name)

    def member(self, trial: Trial, epoch: int | None = None) -> Trial:
        """A member with an epoch's values, after which it waits; by default the last epoch."""
        until = epoch or self._proposals.space.sweep.epochs
        mine = [d for d in self.decisions if d.source and d.trial == trial.name]
        taken = "".join(f", took over {d.source} after epoch {d.epoch}" for d in mine)
        now = self._proposals.at(trial, self._values(trial.name, until))
        return replace(now, until=until, reason=trial.reason + taken)

    def decide(self, epoch: int) -> None:
        """Decide after an epoch which member copies which. Earlier decisions stand."""
        if not any(made.epoch == epoch for made in self.decisions):
            self.decisions += list(self._decide(epoch))
            write_durably(self._log, self.table())
        for made in self.decisions:
            if made.epoch == epoch and made.source:
                _take_over(self._members[made.trial], self._members[made.source], epoch)

    def schedule(self, name: str) -> list[dict[str, Any]]:
        """The values that a member's final weights were trained with, and from which epoch on."""
        found: list[dict[str, Any]] = []
        for epoch in range(self._proposals.space.sweep.epochs, 0, -1):
            found.insert(0, {"epoch": epoch, "trial": name, "params": self._values(name, epoch)})
            name = next((d.source for d in self.decisions if d.source
                         and (d.trial, d.epoch) == (name, epoch - 1)), name)  # fmt: skip
        return [
            part
            for n, part in enumerate(found)
            if n == 0 or part | {"epoch": 0} != found[n - 1] | {"epoch": 0}
        ]

    def table(self) -> bytes:
        """The log as CSV."""
        rows = (
            asdict(made) | {"before": json.dumps(made.before), "after": json.dumps(made.after)}
            for made in self.decisions
        )
        return csv_bytes([field.name for field in fields(Decision)], rows)

    def _decide(self, epoch: int) -> Iterator[Decision]:
        sweep = self._proposals.space.sweep
        scores = {name: trial.by_epoch().get(epoch) for name, trial in self._members.items()}
        there = {name: score for name, score in scores.items() if score is not None}
        ranked = sorted(there, key=lambda name: -there[name])  # the first of equals is the better
        share = min(len(there) // 2, max(1, len(there) // sweep.reduction))
        best, worst = ranked[:share], ranked[len(ranked) - share :]
        for order, (name, score) in enumerate(there.items(), len(self.decisions) + 1):
            before = self._values(name, epoch)
            rng = np.random.default_rng((sweep.seed, epoch, self._members[name].number))
            source = best[rng.integers(share)] if name in worst else ""
            if not source or there[source] <= score:
                yield Decision(order, name, epoch, score, GOES_ON, "", before, before)
                continue
            after = self._explored(self._values(source, epoch), rng)
            yield Decision(order, name, epoch, score, TAKES_OVER, source, before, after)

    def _explored(self, point: Point, rng: np.random.Generator) -> Point:
        """A point near another: a value is drawn anew, moves on in its list, or by a fifth."""
        space, found = self._proposals.space, {}
        for key, choice in space.choices.items():
            value = point[key]
            if rng.random() < _DRAWN_ANEW:
                value = space.value(key, rng.random())
            elif choice.choice:
                at = choice.choice.index(value)
                near = [n for n in (at - 1, at + 1) if 0 <= n < len(choice.choice)] or [at]
                value = choice.choice[rng.choice(near)]
            else:
                low, high = choice.uniform or choice.loguniform or ()
                value = min(high, max(low, value * rng.choice(_FACTORS)))
                value = round(value) if space.is_whole(key) else float(value)
            found[key] = value
        return found

    def _values(self, name: str, epoch: int) -> Point:
        """The values of a member in an epoch."""
        made = [d for d in self.decisions if d.trial == name and d.epoch < epoch]
        return made[-1].after if made else self._members[name].point


def _failed(trial: Trial) -> bool:
    ended = trial.run.ended()
    return ended is not None and ended["status"] == "FAILED"


def _take_over(child: Trial, source: Trial, epoch: int) -> None:
    """Write a second checkpoint of the epoch's end into the child's run, with the other's state."""
    from gliotrail.segmentation.loop import SCORE  # seconds of imports

    ends = [point.step for point in child.run.points() if point.key == SCORE]
    if [c.step for c in child.run.history()].count(ends[epoch - 1]) == 1:
        taken = source.run.history()[-1]
        writer = Writer(child.run, taken.made_on)
        writer.checkpoint(ends[epoch - 1], taken.state())
        writer.close()


def _parse(row: Mapping[str, str]) -> Decision:
    before, after = json.loads(row["before"]), json.loads(row["after"])
    numbers = int(row["order"]), row["trial"], int(row["epoch"]), float(row["value"])
    return Decision(*numbers, row["decision"], row["source"], before, after)
