"""A running sweep on a terminal or in a log, read from the trials' own folders.

On a terminal it is a table, the best on top, drawn anew each second; in a log it is a line for each
decision at a rung and for each trial's end.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from gliotrail.progress import meanwhile, say
from gliotrail.runs.journal import now_ms
from gliotrail.search.halving import GOES_ON, Halving
from gliotrail.search.proposals import Proposals, Trial
from gliotrail.segmentation.loop import SCORE
from gliotrail.training.driver import plan_of
from gliotrail.training.watch import Journal

_FRAME_LINES: Final = 7
"""Lines of a table's title, head and foot, the line below it, and the cursor's."""


@dataclass
class _Seen:
    """A trial's state. `status`: waits, runs, finished, stopped early, failed."""

    trial: Trial
    journal: Journal = field(default_factory=Journal)
    status: str = "waits"
    step: int = 0
    score: float | None = None

    @property
    def has_ended(self) -> bool:
        return self.status not in {"waits", "runs"}

    @property
    def voxels(self) -> int:
        return self.step * self.trial.training.voxels_per_step


class Board:
    """The state of a sweep's trials; `look` reads the news."""

    def __init__(self, proposals: Proposals, halving: Halving) -> None:
        self._proposals, self._halving = proposals, halving
        self._seen: dict[int, _Seen] = {}
        self._since_ms, self._since_s = now_ms(), time.monotonic()
        first = proposals.probes[0]
        self._epochs = first.section.epochs
        known = [trial.training for trial in proposals.trials]
        asked = [first] * (proposals.total - len(known))  # their patches may have another size
        self._budget = sum(plan_of(of).steps * of.voxels_per_step for of in known + asked)
        self._decisions, self._voxels_before = len(halving.decisions), 0
        self.look()
        self._voxels_before = self._voxels()
        for seen in self._seen.values():
            if not seen.has_ended:  # it ran before: there is news when it goes on
                seen.status = "waits"

    def look(self) -> list[str]:
        """Read the news in the folders of running trials.

        Returns:
            lines about the events since the last look.
        """
        made = self._halving.decisions[self._decisions :]
        self._decisions += len(made)
        trials = list(self._proposals.trials)  # more may come at any time
        labels = {trial.name: trial.label for trial in trials} if made else {}
        lines = [
            f"{labels[d.trial]}: epoch {d.rung} of {self._epochs}, "
            f"validation Dice {d.value:.3f}: {d.decision}"
            for d in made
            if d.decision == GOES_ON  # the ends of the others are reported
        ]
        for trial in trials:
            seen = self._seen.get(trial.number)
            if seen is None and trial.run.has_begun():
                seen = self._seen[trial.number] = _Seen(trial)
            if seen is None or seen.has_ended:
                continue
            ended = self._ended(trial)  # first, so that all its points are read then
            for point in seen.journal.news(trial.run):
                seen.step, seen.status = point.step, "runs"
                seen.score = point.value if point.key == SCORE else seen.score
            if ended is not None:
                seen.status, line = ended
                lines.append(f"{trial.label}: {line}; {self.state()}")
        return lines

    def _ended(self, trial: Trial) -> tuple[str, str] | None:
        """How a trial ended in this sweep, in a word and in a line; None while it has not."""
        ended = trial.run.ended()
        if ended is None:
            return None
        stopped = self._halving.stopped(trial)
        if stopped is not None:
            return "stopped early", self._halving.reason(stopped)
        if ended["status"] == "FINISHED":
            return "finished", f"finished, validation Dice {ended['summary']['score']:.3f}"
        if ended["time_ms"] < self._since_ms:  # of an earlier attempt: it goes on
            return None
        return ended["status"].lower(), f"{ended['status']}: {ended['reason']}"

    def _voxels(self) -> int:
        return sum(seen.voxels for seen in self._seen.values())

    def state(self) -> str:
        """One line: trials, voxels seen of the whole budget, and the time left.

        Waiting trials are assumed to see as much as those that have ended.
        """
        total, voxels = self._proposals.total, self._voxels()
        ended = [seen.voxels for seen in self._seen.values() if seen.has_ended]
        each = sum(ended) / len(ended) if ended else self._budget / total
        under_way = voxels - sum(ended)
        left = max(0.0, (total - len(ended)) * each - under_way)
        per_s = (voxels - self._voxels_before) / max(time.monotonic() - self._since_s, 1e-9)
        eta = f", ETA {left / per_s:.0f} s" if per_s > 0 and len(ended) < total else ""
        return (
            f"{len(ended)}/{total} trials, {voxels / 1e6:.3g} of {self._budget / 1e6:.3g} million "
            f"voxels ({voxels / self._budget:.0%}){eta}"
        )

    def table(self, height: int) -> Group:
        """The trials that run and the best of the others, as many as fit, the best on top.

        Args:
            height: lines of the terminal.
        """

        def by_score(seen: _Seen) -> float:
            return -1.0 if seen.score is None else seen.score

        known = sorted(self._seen.values(), key=by_score, reverse=True)
        # running trials are kept first, but sorted like the others
        kept = sorted(known, key=lambda seen: seen.status != "runs")[
            : max(1, height - _FRAME_LINES)
        ]
        table = Table(title="sweep")
        table.add_column("trial", no_wrap=True)
        for name in ("", "epoch", "Dice", "voxels, millions"):
            table.add_column(name, justify="right", no_wrap=True)
        for seen in sorted(kept, key=by_score, reverse=True):
            epoch = seen.step // plan_of(seen.trial.training).steps_per_epoch
            table.add_row(
                escape(seen.trial.label),
                seen.status,
                f"{epoch}/{self._epochs}",
                "" if seen.score is None else f"{seen.score:.3f}",
                f"{seen.voxels / 1e6:.1f}",
            )
        more = self._proposals.total - len(kept)
        return Group(table, self.state() + (f"; {more} trials not shown" if more else ""))


@contextmanager
def watching_sweep(proposals: Proposals, halving: Halving, every_s: float = 1.0) -> Iterator[None]:
    """Show the sweep's trials while the block runs them."""
    board = Board(proposals, halving)
    with ExitStack() as stack:
        live = None
        if sys.stderr.isatty():
            console = Console(stderr=True)
            live = Live(console=console, auto_refresh=False, transient=True)
            stack.enter_context(live)

        def look() -> None:
            lines = board.look()
            if live is not None:
                live.update(board.table(live.console.height), refresh=True)
            else:
                for line in lines:
                    say(f"sweep: {line}")

        with meanwhile(look, every_s):
            yield
