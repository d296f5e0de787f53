"""A sweep's trials, in order: known from the start, or proposed one after another.

A trial is a training and is identified by its inputs (see `training`): the same point in a wider
space, or in a resumed sweep, is the same trial.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gliotrail.errors import ParamsError
from gliotrail.files import read_json, write_durably
from gliotrail.param_types import FROM_SWEEP, format_size
from gliotrail.params import Params, Train
from gliotrail.paths import state_dir
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import digest_of
from gliotrail.search.space import Point, Space, changes
from gliotrail.training.inputs import Training, with_changes

ALWAYS: Final = ("learning_rate", "patch_size")
"""The keys that `train` can take from a sweep's winner. Every trial has them, swept or not."""


@dataclass(frozen=True)
class Trial:
    """One of a sweep's trainings. `number` is its place in the sweep, from 0."""

    number: int
    point: Point
    training: Training
    run: RunFolder
    until: int | None = None
    """The epoch that it is trained to for now, if not to its end."""
    reason: str = "trained to its budget"
    """The reason with which its run ends."""

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.run.root.name

    def values(self) -> dict[str, Any]:
        """Learning rate, patch size, and the other swept values."""
        section = self.training.section.model_dump(mode="json")
        return {key: section[key] for key in ALWAYS} | self.point

    @property
    def label(self) -> str:
        """The values as text, such as `lr=3.2e-04 patch=48x48x16 batch_size=2`."""
        of = {"lr": f"{self.training.learning_rate:.1e}"}
        of["patch"] = format_size(self.training.size_vox)
        more = {key: value for key, value in self.point.items() if key not in ALWAYS}
        of |= {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in more.items()}
        return " ".join(f"{key}={value}" for key, value in of.items())

    def seen(self) -> dict[str, float]:
        """Steps, voxels and seconds until its last checkpoint."""
        history = self.run.history()
        steps = history[-1].step if history else 0
        voxels = steps * self.training.voxels_per_step
        return {"steps": steps, "trial/voxels": voxels, "trial/seconds": self.run.seconds()}

    def by_epoch(self) -> dict[int, float]:
        """The score at the end of each epoch so far; epochs start at 1."""
        from gliotrail.segmentation.loop import SCORE  # seconds of imports

        points = self.run.points()
        scores = [point.value for point in points if point.key == SCORE and point.step]
        return dict(enumerate(scores, 1))


class Proposals:
    """The trials of a sweep, checked as far as possible before anything starts.

    trials: those that are known so far.
    probes: trainings that together have all swept values.
    parent: the folder of the sweep's own run.

    Raises:
        ParamsError: a key or value that can't be swept, or a patch size that isn't prepared.
    """

    def __init__(self, params: Params, prepared: Path, patches: Path) -> None:
        self._params, self.space = params, Space(params)
        for key in ALWAYS:
            if key not in params.sweep.space and getattr(params.train, key) == FROM_SWEEP:
                do = f"give it one choice, or give train.{key} a value"
                raise ParamsError(f"sweep.space.{key}: missing", do=do)
        sections = [self._section(point) for point in self.space.probes()]
        first = Training.of(params, sections[0], prepared, patches)
        self._first = replace(first, judged=None)
        self.probes = [replace(self._first, section=section) for section in sections]
        inputs = [training.inputs() for training in self.probes]
        identity = digest_of([params.sweep.model_dump(mode="json", exclude={"keep"}), inputs])
        self.parent = RunFolder(state_dir() / "runs" / f"sweep-{identity}")
        self._asked = self.parent.root / "asked.json"
        self.trials: list[Trial] = []
        for point in self._recorded() if self.asks else self.space.points():
            self._append(point)
        self.total = params.sweep.trials if self.asks else len(self.trials)

    @property
    def asks(self) -> bool:
        """Whether new points depend on earlier results."""
        return self._params.sweep.algorithm == "optuna"

    @property
    def is_reproducible(self) -> bool:
        """Whether the winner is independent of how long each trial takes."""
        return not self.asks and self._params.sweep.scheduler == "fifo"

    def at(self, trial: Trial, point: Point) -> Trial:
        """The trial with other values, in the same run."""
        training = replace(trial.training, section=self._section(point))
        return replace(trial, point=point, training=training)

    def add(self, point: Point) -> Trial:
        """Add a proposed point, and record it for a resumed sweep."""
        trial = self._append(point)
        points = [trial.point for trial in self.trials]
        write_durably(self._asked, json.dumps(points).encode())
        return trial

    def ask(self) -> Iterator[Trial]:
        """Yield trials until there are as many as wanted. Each is chosen as late as possible."""
        from gliotrail.search.tpe import Tpe  # a second of imports

        tpe, added = Tpe(self.space), set()
        for trial in self.trials:
            tpe.add(trial.point)
        while len(self.trials) < self.total:
            for trial in self.trials:
                ended = None if trial.number in added else trial.run.ended()
                if ended is not None:
                    tpe.tell(trial.point, trial.by_epoch(), trial.run.is_finished())
                    added.add(trial.number)
            yield self.add(tpe.ask())

    def _append(self, point: Point) -> Trial:
        training = replace(self._first, section=self._section(point))
        if self._params.sweep.algorithm == "pbt":  # its result depends on all others
            training = replace(training, member=f"{len(self.trials)} of {self.parent.root.name}")
        self.trials.append(Trial(len(self.trials), point, training, training.folder()))
        return self.trials[-1]

    def _section(self, point: Point) -> Train:
        return with_changes(self._params, changes(self._params, point), where="sweep.space")

    def _recorded(self) -> list[Point]:
        return list(read_json(self._asked) or [])
