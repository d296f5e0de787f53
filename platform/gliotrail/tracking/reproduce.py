"""Make a training again from what its run recorded, and compare the two number by number.

The training runs in a git worktree at the run's commit, with that commit's own code (see
`rebuild`), state folder and tracking database, so it touches no run or model of this checkout. At
the end the new run moves into an experiment of its own.
"""

import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.numpy import load_file

from gliotrail.errors import Stopped, TrackingError
from gliotrail.files import write_json
from gliotrail.paths import state_dir
from gliotrail.progress import say
from gliotrail.runs.addresses import database_uri
from gliotrail.runs.code_snapshot import code_dir
from gliotrail.runs.journal import MODEL_FILE, RUN_FILE, Point, RunFolder
from gliotrail.runs.lineage import LAYOUT, provenance
from gliotrail.runs.local_runs import runs_dir
from gliotrail.runs.metric_keys import is_of_machines
from gliotrail.runs.stop import stopped_by_signals
from gliotrail.tracking.client import ID_TAG, client, existing_run, one_line
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.evaluation_run import held_out_points, record_held_out
from gliotrail.tracking.rebuild import base_of, bring_data, lay_out, worktree
from gliotrail.tracking.registry import download_weights_of_run
from gliotrail.tracking.trace import resolve


@dataclass(frozen=True)
class Comparison:
    """How far two sets of named numbers agree.

    n, n_equal: how many names are in either set; how many have equal numbers, bit for bit.
    largest: absolute difference; infinite if a name is missing or can't be compared.
    where: the name of the largest difference; empty if all are equal.
    """

    n: int
    n_equal: int
    largest: float = 0.0
    where: str = ""

    @property
    def is_identical(self) -> bool:
        """Whether every number is the same."""
        return self.n == self.n_equal


def compare_numbers(one: Mapping[str, Any], other: Mapping[str, Any]) -> Comparison:
    """Compare arrays or single numbers by name."""
    names = sorted(one.keys() | other.keys())
    differ = {n: d for n in names if (d := _difference(one.get(n), other.get(n))) is not None}
    where = max(differ, key=lambda name: differ[name], default="")
    return Comparison(len(names), len(names) - len(differ), differ.get(where, 0.0), where)


def _difference(one: Any, other: Any) -> float | None:
    """The largest difference and its place; None if all bits are the same."""
    if one is None or other is None:
        return math.inf
    first, second = np.asarray(one), np.asarray(other)
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return math.inf
    if first.tobytes() == second.tobytes():
        return None
    with np.errstate(invalid="ignore"):
        largest = np.abs(first.astype(np.float64) - second).max()
    return math.inf if np.isnan(largest) else float(largest)


EXPERIMENT: Final = "gliotrail-reproductions"
REPRODUCES_TAG: Final = "reproduces"
"""MLflow's id of the reproduced run."""
_VERDICT_TAG: Final = "gliotrail.reproduction"
_ENVIRONMENT: Final = ("cpu", "cores", *LAYOUT, "machine", "python", "torch", "numpy")
_MEASURE: Final = "test/"


@dataclass(frozen=True)
class Reproduction:
    """A run and its reproduction.

    run: MLflow's id.
    again: the reproduction's own id, by which `gliotrail trace` finds it.
    environment: differences, as (then, now).
    parts: weights, curves and, if the run was evaluated, measures.
    """

    run: str
    again: str
    environment: Mapping[str, tuple[str, str]]
    parts: Mapping[str, Comparison]

    @property
    def is_identical(self) -> bool:
        """Whether every number is the same, bit for bit."""
        return all(part.is_identical for part in self.parts.values())

    @property
    def verdict(self) -> str:
        """The result in one line."""
        differ = [
            f"{name} by up to {part.largest:.3g} ({part.where})"
            for name, part in self.parts.items()
            if not part.is_identical
        ]
        return f"different: {', '.join(differ)}" if differ else "bit-identical"


def reproduce(name: str, with_sweep: bool = False) -> Reproduction:
    """Train again, evaluate again if the run was evaluated, and compare.

    If it is stopped, the same command continues the training.

    Args:
        name: a model or a run, as `trace.trace` takes it.
        with_sweep: sweep again, instead of taking the winner that the run took.

    Raises:
        TrackingError: no such run; it can't be rebuilt; a stage failed; MLflow can't be reached.
        Stopped: by Ctrl-C or SIGTERM.
    """
    with one_line():
        server = client()
        run = resolve(server, name)[1]
        base, environment = base_of(server, run), _environment(run)
        for what, (then, now) in environment.items():
            say(f"{what} was {then}, here it is {now}: the same bits can't be promised")
        place = state_dir() / "reproductions" / run.data.tags[ID_TAG]
        tree, state = place / "tree", place / "state"
        with _alone(place), stopped_by_signals(), TemporaryDirectory(dir=place) as downloads:
            weights = load_file(download_weights_of_run(server, run, Path(downloads)))
            points = _points(server, run)
            stages = ["sweep"] * with_sweep + ["train"] + ["evaluate"] * bool(_measures(points))
            with worktree(base, tree):
                lay_out(server, run, tree, Path(downloads) / "of_run")
                bring_data(run, tree, with_sweep)
                for stage in stages:
                    register = "; what it registers is thrown away" * (stage == "evaluate")
                    say(f"{stage}, by the code of commit {base[:12]}{register}")
                    _run_stage(stage, tree, state, _layout(run))
                says = json.loads((tree / "results/train" / RUN_FILE).read_text())
            made = RunFolder(state / "runs" / says["tags"]["gliotrail.inputs"])
            parts = {
                "weights": compare_numbers(weights, load_file(made.root / MODEL_FILE)),
                "curves": compare_numbers(_curves(points), _curves(made.points())),
            }
            judged = []
            if "evaluate" in stages:
                throwaway = MlflowClient(database_uri(state))
                known = existing_run(throwaway, says["experiment"], says["id"])
                judged = [p for p in _points(throwaway, known) if p.key.startswith(_MEASURE)]
                parts["measures"] = compare_numbers(_measures(points), _measures(judged))
            found = Reproduction(run.info.run_id, says["id"], environment, parts)
            taken = _take_over(made, state, found)
            try:
                with one_line():
                    known = server.get_run(deliver(taken, server))
                    record_held_out(server, known, judged, known.info.end_time)
            except TrackingError as error:
                say(f"{error}; `gliotrail runs sync` delivers it later")
            shutil.rmtree(place)
    return found


def _layout(run: Run) -> dict[str, str]:
    """The environment variables that spread the training as before; those set now win."""
    recorded = {name: run.data.tags.get(f"env.{key}", "") for key, name in LAYOUT.items()}
    return {name: os.environ.get(name) or then for name, then in recorded.items()}


def _environment(run: Run) -> dict[str, tuple[str, str]]:
    """What differs and can change a training's bits, as (then, now)."""
    then, layout = run.data.tags, _layout(run)
    now = provenance() | {f"env.{key}": layout[name] for key, name in LAYOUT.items()}
    both = {key: (then.get(f"env.{key}", ""), now[f"env.{key}"]) for key in _ENVIRONMENT}
    return {
        key: (was or "unknown", what or "unknown")
        for key, (was, what) in both.items()
        if was != what
    }


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Lock a folder; the same command continues from what remains in it."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another `gliotrail reproduce` of the same run goes on"
            raise TrackingError(what, where=place) from None
        try:
            yield
        finally:
            if not any(place.glob("state/runs/*/checkpoints/*/manifest.json")):
                shutil.rmtree(place, ignore_errors=True)


def _run_stage(stage: str, tree: Path, state: Path, layout: Mapping[str, str]) -> None:
    """Run a stage with the worktree's own code and a new state folder."""
    before = os.environ.get("PYTHONPATH")
    env = {
        **os.environ,
        **{name: value for name, value in layout.items() if value},
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tree / "platform"), before))),
        "GLIOTRAIL_STATE": str(state),
        "MLFLOW_TRACKING_URI": database_uri(state),
    }
    env.pop("RAY_ADDRESS", None)  # a cluster's address must not change the comparison
    words = [sys.executable, "-m", f"pipelines.{stage}"]
    with subprocess.Popen(words, cwd=tree, env=env) as process:
        try:
            code = process.wait()
        except Stopped as stopped:
            if stopped.code == 143:  # Ctrl-C reaches the stage from the terminal
                process.terminate()
            raise
    if code:
        what = f"stage {stage} ended with exit code {code}"
        raise TrackingError(what, do="see its output above")


def _points(server: MlflowClient, run: Run) -> list[Point]:
    """All points that MLflow has of a run and of its evaluation."""
    return held_out_points(server, run) + [
        Point(m.key, m.value, m.step, m.timestamp)
        for key in run.data.metrics
        if not key.startswith(_MEASURE)
        for m in server.get_metric_history(run.info.run_id, key)
    ]


def _measures(points: Iterable[Point]) -> dict[str, float]:
    return {p.key: p.value for p in points if p.key.startswith(_MEASURE)}


def _curves(points: Iterable[Point]) -> dict[str, float]:
    """A training's curves, without its speed and without later measures."""
    return {
        f"{p.key} at step {p.step}": p.value
        for p in points
        if not is_of_machines(p.key) and not p.key.startswith(_MEASURE)
    }


def _take_over(made: RunFolder, state: Path, found: Reproduction) -> RunFolder:
    """Move a run to this checkout's runs, to be delivered with them."""
    says = made.describe()
    says["experiment"] = EXPERIMENT
    # not under the inputs' hash, which is the original run's
    del says["tags"]["gliotrail.inputs"]
    says["tags"] |= {
        "gliotrail.kind": "reproduction",
        REPRODUCES_TAG: found.run,
        _VERDICT_TAG: found.verdict,
    }
    write_json(made.root / RUN_FILE, says, durably=True)
    shutil.rmtree(made.root / "delivered", ignore_errors=True)
    files = says["tags"].get("gliotrail.code.files")
    if files:
        shutil.copytree(state / "code" / files, code_dir(files), dirs_exist_ok=True)
    taken = runs_dir() / says["id"]
    taken.parent.mkdir(parents=True, exist_ok=True)
    return RunFolder(made.root.rename(taken))
