"""An evaluation's record in MLflow, at the training's run and in the registry. Repeatable."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlflow.entities.model_registry import ModelVersion

from gliotrail.paths import state_dir
from gliotrail.runs.journal import Point, RunFolder
from gliotrail.runs.lineage import PLANNED_TAG
from gliotrail.tracking.champion import describe_version, figures, short_uri
from gliotrail.tracking.client import client, existing_run, one_line
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.evaluation_run import record_held_out, write_note_with_measures
from gliotrail.tracking.registry import (
    TRAINED_ON,
    Rescored,
    champion,
    download_weights,
    log_model,
    promote,
    register,
)

_UNCOMPARED: Final = (
    "it was trained on these validation data or doesn't say so, or has other channels or classes: "
    "`gliotrail promote` chooses by name"
)
_UNMEASURED: Final = "it is not measured on validation data, so only"
TABLE: Final = "table.json"
"""The file that MLflow's pages show as a table."""


def record_evaluation(
    run: Mapping[str, Any],
    weights: Path,
    measures: Mapping[str, float],
    files: Sequence[Path],
    judged_on: str,
    trained_on: str,
    rescore: Callable[[Path, str | None], Rescored | None],
    caveat: str = "",
) -> str:
    """Log test scores and files, register the model, and make it champion if it is the best.

    Scores are in a run of their own below the training's, whose status stays. A run that saw fewer
    voxels than params.yaml planned at its commit becomes champion only by `gliotrail promote`.

    Args:
        run: the content of `results/train/run.json`.
        judged_on: digest of the validation data and of the measures' version.
        trained_on: the model's training cases, kept with its version for later comparisons.
        rescore: scores this model and another weights file on the data that the other, by its
            `trained_on` (None if unknown), was not trained on; None if there are no such data.
        caveat: why the validation score is not reliable, if so.

    Returns:
        one line to print.

    Raises:
        TrackingError: MLflow can't be reached, or doesn't know the run.
    """
    summary, time_ms = run["ended"]["summary"], run["ended"]["time_ms"]
    points = [Point(key, value, summary["step"], time_ms) for key, value in measures.items()]
    with one_line():
        server = client()
        folder = RunFolder(state_dir() / "runs" / run["tags"]["gliotrail.inputs"])
        if folder.has_begun():  # trained in this checkout, perhaps while MLflow was down
            deliver(folder, server)
        found = existing_run(server, run["experiment"], run["id"])
        run_id = found.info.run_id
        record_held_out(server, found, points, time_ms)
        for path in files:
            server.log_artifact(run_id, str(path), "evaluation")
            if path.name == TABLE:  # as `mlflow.log_table` sets it; that appends if repeated
                table = [{"path": f"evaluation/{TABLE}", "type": "table"}]
                server.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(table))

        def rescore_version(holder: ModelVersion) -> Rescored | None:
            with tempfile.TemporaryDirectory() as folder:
                theirs = download_weights(server, holder, Path(folder))
                return rescore(theirs, holder.tags.get(TRAINED_ON))

        write_note_with_measures(server, server.get_run(run_id), run)
        experiment = found.info.experiment_id
        model_id = log_model(server, experiment, run_id, weights, run["params"]["threshold"])
        version = register(
            server, run_id, model_id, weights, {"gliotrail.id": run["id"], TRAINED_ON: trained_on}
        )
        before, missing = champion(server, version.name), _missing_voxels(run)
        won: bool | None = False
        if "score" in summary:
            score = float(summary["score"])
            won = promote(server, version, score, judged_on, rescore_version, bool(missing))
        from gliotrail.segmentation.weights import read  # torch takes seconds to import

        describe_version(server, version, read(weights)[1].task)
        now = champion(server, version.name)
        scored = server.get_model_version(version.name, version.version)
        lines = [f"{version.name} {figures(server, scored)}"]
        if not won:
            lines.append(f"the champion stays {figures(server, now) if now else 'nobody'}")
            lines += [_UNCOMPARED] if won is None else []
        elif before is None or str(before.version) == str(version.version):
            lines.append("it is champion")
        else:
            # its score may be a new one
            was = server.get_model_version(version.name, before.version)
            lines.append(f"champion: {figures(server, was)} -> {figures(server, now or version)}")
    name = short_uri(version)
    if "score" not in summary:
        lines.append(f"{_UNMEASURED} `gliotrail promote {name}` makes it champion")
    elif missing:
        lines.append(f"{missing}, so only `gliotrail promote {name}` makes it champion")
    lines += [caveat] if caveat else []
    return "; ".join(lines)


def _missing_voxels(run: Mapping[str, Any]) -> str:
    """A text if a run saw fewer voxels than params.yaml planned at its commit, else empty."""
    params, planned = run["params"], int(run["tags"].get(PLANNED_TAG) or 0)
    seen = params.get("epochs", 0) * params.get("epoch_voxels", 0)
    if seen >= planned:
        return ""
    return f"it saw {seen / 1e6:.1f} million voxels of the {planned / 1e6:.1f} million planned"
