"""Early stopping of trials. Decisions depend on nothing but the log of earlier ones.

asha: asynchronous successive halving (Li et al., MLSys 2020, arXiv:1810.05934). At each rung, an
epoch, a trial goes on if it is among the best 1/reduction of the trials that reached it so far;
the first one always does. An epoch has the same number of voxels for every patch size.
hyperband: the same in several brackets, in case early values mislead (Li et al., JMLR 2018,
arXiv:1603.06560). Each bracket has its first rung later than the one before; the last has none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from gliotrail.files import csv_bytes, parsed_rows, write_durably
from gliotrail.params import Sweep
from gliotrail.search.proposals import Trial

GOES_ON: Final = "goes on"
STOPPED: Final = "stopped"
FINISHED: Final = "finished before"


@dataclass(frozen=True)
class Decision:
    """The decision about a trial at a rung, an epoch; `value` is its score there."""

    order: int
    trial: str
    bracket: int
    rung: int
    value: float
    decision: str


class Halving:
    """Decides which trials stop, and logs it: an interrupted sweep continues from its log.

    log: a CSV file.
    """

    def __init__(self, sweep: Sweep, log: Path) -> None:
        self._sweep, self._log = sweep, log
        self.decisions = list(parsed_rows(log, _parse))
        self._made = {(d.trial, d.rung): d for d in self.decisions}

    def best_by_rung(self) -> dict[int, float]:
        """The best value at each rung so far."""
        best: dict[int, float] = {}
        for decision in self.decisions:
            best[decision.rung] = max(decision.value, best.get(decision.rung, decision.value))
        return best

    def rungs(self, number: int) -> tuple[int, list[int]]:
        """The bracket of the sweep's trial `number` (from 0), and the rungs of that bracket."""
        if self._sweep.scheduler == "fifo":
            return 0, []
        factor, rungs = self._sweep.reduction, [1]
        while rungs[-1] * factor < self._sweep.epochs:
            rungs.append(rungs[-1] * factor)
        rungs = [rung for rung in rungs if rung < self._sweep.epochs]
        if self._sweep.scheduler == "asha":
            return 0, rungs
        brackets = len(rungs) + 1
        # the more rungs, the more trials: all brackets then cost about the same
        sizes = [math.ceil(brackets / (n + 1) * factor**n) for n in range(brackets)][::-1]
        number %= sum(sizes)
        bracket = next(n for n in range(brackets) if number < sum(sizes[: n + 1]))
        return bracket, rungs[bracket:]

    def goes_on(self, trial: Trial, epoch: int, value: float) -> bool:
        """Whether a trial goes on after an epoch. The same question gets the same answer."""
        bracket, rungs = self.rungs(trial.number)
        if epoch not in rungs:
            return True
        if (trial.name, epoch) not in self._made:
            there = [d.value for d in self.decisions if (d.bracket, d.rung) == (bracket, epoch)]
            better = sum(other > value for other in there)
            among = better < max(1, (len(there) + 1) // self._sweep.reduction)
            self._note(trial, epoch, value, GOES_ON if among else STOPPED)
        return self._made[trial.name, epoch].decision != STOPPED

    def note_finished(self, trial: Trial) -> None:
        """Note a trial that had finished before this sweep: the others are compared with it."""
        by_epoch = trial.by_epoch()
        for rung in self.rungs(trial.number)[1]:
            if (trial.name, rung) not in self._made:
                self._note(trial, rung, by_epoch[rung], FINISHED)

    def stopped(self, trial: Trial) -> Decision | None:
        """The decision that stopped a trial, if any."""
        made = (self._made.get((trial.name, rung)) for rung in self.rungs(trial.number)[1])
        return next((d for d in made if d is not None and d.decision == STOPPED), None)

    def reason(self, decision: Decision) -> str:
        """One line that says why a trial was stopped."""
        sweep = self._sweep
        return (
            f"stopped early by {sweep.scheduler} after epoch {decision.rung} of {sweep.epochs}: "
            f"validation Dice {decision.value:.3f} is not among the best 1 in {sweep.reduction}"
        )

    def table(self) -> bytes:
        """The log as CSV."""
        return csv_bytes([field.name for field in fields(Decision)], map(vars, self.decisions))

    def _note(self, trial: Trial, rung: int, value: float, decision: str) -> None:
        order, bracket = len(self.decisions) + 1, self.rungs(trial.number)[0]
        made = Decision(order, trial.name, bracket, rung, value, decision)
        self.decisions.append(made)
        self._made[trial.name, rung] = made
        write_durably(self._log, self.table())


def _parse(row: Mapping[str, str]) -> Decision:
    order, bracket, rung = (int(row[key]) for key in ("order", "bracket", "rung"))
    return Decision(order, row["trial"], bracket, rung, float(row["value"]), row["decision"])
