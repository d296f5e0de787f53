"""Rebuild runs from the outputs of their stage, if this machine or MLflow lacks them.

DVC may bring a model back without running anything: from its run cache, or by `dvc pull` on another
machine. The outputs are a complete record of their run: description, points, model.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from gliotrail.errors import TrackingError
from gliotrail.files import replacing, sha256
from gliotrail.runs.journal import (
    JOURNAL_FILE,
    MODEL_FILE,
    RUN_FILE,
    RunFolder,
    parse_lines,
)
from gliotrail.runs.local_runs import runs_dir
from gliotrail.runs.writer import Writer
from gliotrail.tracking.client import client, find_run, one_line
from gliotrail.tracking.once import SHA256_TAG

OUTPUTS: Final = ("results/train", "results/crossvalidate/*")
RESTORED_TAG: Final = "gliotrail.restored"
_AGAIN: Final = "bring it back with `dvc checkout`"


def outputs_here() -> list[Path]:
    """The folders of this checkout that hold a run's outputs."""
    return [p for pattern in OUTPUTS for p in Path().glob(pattern) if (p / RUN_FILE).is_file()]


def restore(outputs: Path) -> RunFolder | None:
    """Make a run's folder from its outputs, under the same id and marked as restored.

    Returns:
        the folder; None if this machine has one with the same inputs.

    Raises:
        TrackingError: the outputs are damaged.
    """
    says = _read(outputs)
    run, ended = RunFolder(runs_dir() / says["tags"]["gliotrail.inputs"]), says.pop("ended")
    if run.has_begun():
        return None
    lines = (outputs / JOURNAL_FILE).read_bytes()
    points = parse_lines(lines)
    n_lines = len(lines.splitlines())
    if len(points) < n_lines:
        got = f"{len(points)} whole lines of {n_lines}"
        raise TrackingError("damaged journal", where=outputs / JOURNAL_FILE, got=got, do=_AGAIN)
    says["tags"][RESTORED_TAG] = "true"
    with replacing(run.root) as partial:
        made = RunFolder(partial)
        made.begin(says)
        writer = Writer(made)
        writer.adopt(lines)
        writer.checkpoint(max((point.step for point in points), default=0), b"")
        writer.close()
        shutil.copyfile(outputs / MODEL_FILE, partial / MODEL_FILE)
        made.end(ended["status"], ended["reason"], ended["summary"], ended["time_ms"])
    return run


def _read(outputs: Path) -> dict[str, Any]:
    try:
        says = dict(json.loads((outputs / RUN_FILE).read_text()))
        if not str(says["tags"]["gliotrail.inputs"]).isalnum():  # it becomes a folder's name
            raise ValueError
        says["ended"]["summary"]
    except (OSError, ValueError, KeyError, TypeError):
        raise TrackingError("no record of a run", where=outputs / RUN_FILE, do=_AGAIN) from None
    return says


def disagreements() -> Iterator[tuple[str, str]]:
    """Where the outputs of this checkout and MLflow differ: where, and what to do.

    Raises:
        TrackingError: MLflow can't be reached, or outputs are damaged.
    """
    with one_line():
        server = client()
        for outputs in outputs_here():
            says = _read(outputs)
            known = find_run(server, says["experiment"], says["id"])
            if known is None:
                what = f"MLflow has no run {says['id']}: `gliotrail runs sync` rebuilds it"
                yield str(outputs), what
                continue
            if known.info.status != says["ended"]["status"]:
                what = f"{says['ended']['status']}, in MLflow {known.info.status}"
                yield str(outputs), f"{what}: `gliotrail runs sync` mends it"
            versions = server.search_model_versions(f"run_id = '{known.info.run_id}'")
            ours = sha256(outputs / MODEL_FILE)
            registered = sorted({str(v.tags.get(SHA256_TAG)) for v in versions})
            if registered and ours not in registered:
                what = f"model {ours[:12]}, registered {' '.join(d[:12] for d in registered)}"
                yield str(outputs), f"{what}: `dvc repro evaluate` registers what is here"
