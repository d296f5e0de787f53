"""Stage `train`: fine-tune the network on Ray's workers; out come model, journal and curves."""

import csv
import json
import shutil
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Final

from gliotrail.distributed.cluster import cluster, resources
from gliotrail.distributed.training import (
    Training,
    describe,
    restore,
    write_artifacts,
)
from gliotrail.distributed.watch import watching
from gliotrail.distributed.workers import fit_on_workers
from gliotrail.errors import GliotrailError, ParamsError
from gliotrail.files import replacing, write_json
from gliotrail.params import FROM_SWEEP, Params, parse_size
from gliotrail.progress import say
from gliotrail.segmentation.weights import Description, to_bytes
from gliotrail.tracking.journal import MODEL_FILE, Point, RunFolder
from gliotrail.tracking.runs import Courier

EXPERIMENT: Final = "gliotrail"


def train(
    params: Params,
    prepared: Path = Path("data/prepare"),
    patches: Path = Path("data/patch"),
    sweep: Path = Path("results/sweep"),
    out: Path = Path("results/train"),
) -> None:
    """Train as params.yaml says, going on where an interrupted training of the same inputs was.

    Raises:
        ParamsError: no winner of a sweep, a patch size that isn't prepared or can't be halved.
        TrainingError, DataError, ClusterError: as training, data and cluster have it.
    """
    training = resolve(params, prepared, patches, sweep)
    training.check()
    run = training.folder()
    if run.begin(describe(training, EXPERIMENT, "train")):
        write_artifacts(training, run)
    ended = run.ended()
    courier = Courier([run])
    try:
        if ended is None or ended["status"] != "FINISHED":
            run.reopen()
            with cluster(), watching(run, training.plan().steps, "train"):
                fit_on_workers(training, run, resources())
            finish(training, run)
    except BaseException as error:
        told = error if isinstance(error, GliotrailError) else type(error).__name__
        run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", str(told))
        raise
    finally:
        late = courier.close()
        if late:
            say(f"not all of it is in MLflow yet ({late}); `gliotrail runs sync` delivers it later")
    export(run, out)


def resolve(params: Params, prepared: Path, patches: Path, sweep: Path) -> Training:
    """The training that params.yaml asks for, with the sweep's winner where it says so.

    Raises:
        ParamsError: the winner is asked for, and there is none.
    """
    section = params.train
    winner: dict[str, Any] = {}
    if FROM_SWEEP in (section.learning_rate, section.patch_size):
        path = sweep / "best.json"
        if not path.is_file():
            raise ParamsError("no winner of a sweep", where=path, do="run `dvc repro sweep`")
        winner = json.loads(path.read_text())["params"]
    rate, size = section.learning_rate, section.patch_size
    if rate == FROM_SWEEP:
        rate = winner.get("learning_rate", rate)
    if size == FROM_SWEEP:
        size = parse_size(winner.get("patch_size", size))
    if isinstance(rate, str) or isinstance(size, str):
        raise ParamsError(
            "train asks for a value from the sweep that it doesn't sweep",
            where="params.yaml",
            do="set train.learning_rate and train.patch_size, or add them to sweep.space",
        )
    return Training(
        section=section,
        learning_rate=float(rate),
        size_vox=size,
        epochs=section.epochs,
        seed=section.seed,
        threshold=params.evaluate.threshold,
        prepared=prepared.absolute(),
        patches=patches.absolute(),
    )


def finish(training: Training, run: RunFolder) -> None:
    """Write the model beside the journal and close the run."""
    state = restore(run)
    assert state is not None
    section = training.section
    description = Description(model=section.model, standardize=section.standardize)
    content = to_bytes(state.weights("kept"), description)
    with replacing(run.root / MODEL_FILE) as partial:
        partial.write_bytes(content)
    run.end("FINISHED", "trained to the end", {"score": state.kept_score, "step": state.kept_step})


def export(run: RunFolder, out: Path) -> None:
    """The stage's outputs: the model, and a complete record of the run."""
    description, ended = run.describe(), run.ended()
    assert ended is not None
    points = [point for checkpoint in run.history() for point in checkpoint.points()]
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        shutil.copyfile(run.root / MODEL_FILE, partial / MODEL_FILE)
        (partial / "journal.jsonl").write_bytes(
            b"".join(
                (checkpoint.folder / "segment.jsonl").read_bytes() for checkpoint in run.history()
            )
        )
        write_json(partial / "run.json", description | {"ended": ended})
        for part, name in (("train", "train.csv"), ("val", "validation.csv")):
            (partial / name).write_text(_table(points, f"{part}/"))


def _table(points: Sequence[Point], prefix: str) -> str:
    """The points whose key starts with `prefix` as CSV: a row a step, a column a key."""
    rows: dict[int, dict[str, float]] = {}
    for point in points:
        if point.key.startswith(prefix):
            rows.setdefault(point.step, {"step": point.step})[point.key.removeprefix(prefix)] = (
                point.value
            )
    columns = dict.fromkeys(key for row in rows.values() for key in row)
    text = StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows.values())
    return text.getvalue()
