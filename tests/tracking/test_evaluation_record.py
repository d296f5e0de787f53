import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from gliotrail.errors import TrackingError
from gliotrail.paths import state_dir
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.tracking.client import existing_run
from gliotrail.tracking.evaluation_record import record_evaluation
from gliotrail.tracking.registry import CHAMPION, MODEL, champion
from tests.support.told import told
from tests.support.tracked_runs import begun, go_on, model_file

MEASURES = {"test/dice_WT": 0.8, "test/hd95_mm_WT": 4.5}


def trained(seed: int = 7, score: float = 0.5) -> tuple[RunFolder, dict[str, Any]]:
    """A finished run where `train` keeps it, and what its run.json says."""
    run = begun(state_dir() / f"runs/{seed}")
    description = run.describe()
    root = run.root.rename(run.root.with_name(description["tags"]["gliotrail.inputs"]))
    run = RunFolder(root)
    go_on(run, [1, 2])
    model_file(root / MODEL_FILE, seed)
    run.end("FINISHED", "trained to the end", {"score": score, "step": 2})
    return run, description | {"ended": run.ended()}


def record(run: RunFolder, says: dict[str, Any], judged_on: str = "data", **more: Any) -> str:
    files = [run.root / "run.json"]
    values = {"measures": MEASURES, "rescore": lambda path: 1 / 0} | more
    return record_evaluation(
        run=says, weights=run.root / MODEL_FILE, files=files, judged_on=judged_on, **values
    )


def test_an_evaluation_adds_scores_files_and_a_version_to_the_run_and_leaves_its_end(
    server: MlflowClient,
) -> None:
    run, says = trained()
    line = record(run, says)
    assert line == f"{MODEL} version 1: validation Dice 0.500, champion"
    of = told(server, existing_run(server, "tests", says["id"]).info.run_id)
    time_ms = says["ended"]["time_ms"]
    scores = [point for point in of["points"] if point[0].startswith("test/")]
    assert scores == [("test/dice_WT", 2, 0.8, time_ms), ("test/hd95_mm_WT", 2, 4.5, time_ms)]
    assert "evaluation/run.json" in of["files"]
    assert (of["status"], of["times"][1]) == ("FINISHED", time_ms)


def test_again_is_as_once(server: MlflowClient) -> None:
    run, says = trained()
    record(run, says)
    run_id = existing_run(server, "tests", says["id"]).info.run_id
    once, version = told(server, run_id), champion(server)
    assert record(run, says).endswith("champion")
    assert told(server, run_id) == once
    known = server.search_model_versions(f"name = '{MODEL}'")
    assert [str(v.version) for v in known] == ["1"]
    assert version is not None
    assert known[0].tags == version.tags


def test_the_champion_stays_or_goes_by_the_validation_score(server: MlflowClient) -> None:
    for seed, score in enumerate((0.5, 0.4, 0.6)):
        record(*trained(seed, score))
    holder = server.get_model_version_by_alias(MODEL, CHAMPION)
    assert (str(holder.version), float(holder.tags["gliotrail.score"])) == ("3", 0.6)


def test_on_other_data_the_old_champions_own_weights_are_scored(server: MlflowClient) -> None:
    first, says = trained(1, 0.9)
    record(first, says)
    seen = []

    def rescore(path: Path) -> float:
        seen.append(path.read_bytes())
        return 0.3

    line = record(*trained(2, 0.4), judged_on="other data", rescore=rescore)
    assert line.endswith("version 2: validation Dice 0.400, champion")
    assert seen == [(first.root / MODEL_FILE).read_bytes()]


def test_a_run_of_another_machine_must_be_in_mlflow(server: MlflowClient, tmp_path: Path) -> None:
    run, says = trained()
    elsewhere = RunFolder(run.root.rename(tmp_path / "elsewhere"))
    with pytest.raises(TrackingError, match=f"no run {says['id']}"):
        record(elsewhere, says)


def test_what_mlflow_raises_is_one_line(
    server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, says = trained()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    with pytest.raises(TrackingError, match="MLflow: got"):
        record(run, says)
    assert json.loads((run.root / "run.json").read_text())["id"] == says["id"]
