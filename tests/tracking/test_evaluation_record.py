import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from gliotrail.errors import TrackingError
from gliotrail.paths import state_dir
from gliotrail.runs.journal import MODEL_FILE, Point, RunFolder
from gliotrail.tracking.champion import crown, uncrown, versions
from gliotrail.tracking.client import existing_run
from gliotrail.tracking.evaluation_record import record_evaluation
from gliotrail.tracking.evaluation_run import held_out_points
from gliotrail.tracking.registry import CHAMPION, MODEL, PROMOTED, champion, is_promoted
from tests.support.told import told
from tests.support.tracked_runs import begun, go_on, model_file

MEASURES = {"test/dice_WT": 0.8, "test/hd95_mm_WT": 4.5, "test/dice_mean_regions": 0.7}


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
    values = {"measures": MEASURES, "rescore": lambda path, seen: 1 / 0, "trained_on": "a b"} | more
    return record_evaluation(
        run=says, weights=run.root / MODEL_FILE, files=files, judged_on=judged_on, **values
    )


def test_an_evaluation_adds_scores_files_and_a_version_to_the_run_and_leaves_its_end(
    server: MlflowClient,
) -> None:
    run, says = trained()
    line = record(run, says)
    assert line == f"{MODEL} version 1 (validation Dice 0.500, held out 0.700); it is champion"
    of = told(server, existing_run(server, "tests", says["id"]).info.run_id)
    time_ms = says["ended"]["time_ms"]
    known = existing_run(server, "tests", says["id"])
    assert sorted(held_out_points(server, known), key=lambda point: point.key) == [
        Point(key, value, 2, time_ms) for key, value in sorted(MEASURES.items())
    ]
    assert not [point for point in of["points"] if point[0].startswith("test/")]
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


def test_a_versions_page_says_what_it_is_worth_and_how_to_use_it(server: MlflowClient) -> None:
    run, says = trained()
    record(run, says)
    told = server.get_model_version(MODEL, "1").description
    for wanted in (
        "validation Dice 0.500, held out 0.700", "WT 0.800", "FLAIR, T1w, T1gd, T2w",
        "3 enhancing", f"--model models:/{MODEL}/1", "mlflow.pyfunc.load_model", "/runs/",
    ):  # fmt: skip
        assert wanted in told
    server.update_model_version(MODEL, "1", "mine")
    record(run, says)
    assert server.get_model_version(MODEL, "1").description == "mine"


def planned(says: dict[str, Any], seen: int, planned: int) -> dict[str, Any]:
    tags = says["tags"] | {"gliotrail.planned_voxels": str(planned)}
    return says | {"tags": tags, "params": says["params"] | {"epochs": 1, "epoch_voxels": seen}}


def test_a_short_run_becomes_champion_only_by_a_person(server: MlflowClient) -> None:
    whole, says = trained(1, 0.5)
    record(whole, planned(says, 2_000_000, 2_000_000))
    short, says = trained(2, 0.9)
    line = record(short, planned(says, 1_000_000, 2_000_000), caveat="little to go by")
    assert "the champion stays version 1" in line
    assert "1.0 million voxels of the 2.0 million planned, so only `gliotrail promote 2`" in line
    assert line.endswith("; little to go by")
    told = crown("2")["told"]
    assert told == (
        "champion: version 1 (validation Dice 0.500, held out 0.700) -> "
        "version 2 (validation Dice 0.900, held out 0.700)"
    )
    holder = champion(server)
    assert holder is not None
    assert str(holder.version) == "2"
    assert "it is champion" in record(short, planned(says, 1_000_000, 2_000_000))
    rows = versions()
    assert [(row["version"], row["aliases"]) for row in rows] == [
        ("2", ["champion", "promoted"]),
        ("1", []),
    ]
    assert {row["model"] for row in rows} == {MODEL}
    assert rows[0]["held_out_dice"] == {"WT": 0.8, "mean_regions": 0.7}
    with pytest.raises(TrackingError, match="champion: wanted version 1, got version 2"):
        uncrown("1")
    assert uncrown(f"models:/{MODEL}/2")["now"] is None
    assert champion(server) is None


def test_a_short_run_is_no_champion_of_an_empty_registry_either(server: MlflowClient) -> None:
    run, says = trained(1, 0.5)
    assert "the champion stays nobody" in record(run, planned(says, 1, 2))
    assert champion(server) is None


def test_on_other_data_the_old_champions_own_weights_are_scored(server: MlflowClient) -> None:
    first, says = trained(1, 0.9)
    record(first, says)
    seen = []

    def rescore(path: Path, trained_on: str | None) -> tuple[float, float, str]:
        seen.append((path.read_bytes(), trained_on))
        return 0.4, 0.3, "other data"

    line = record(*trained(2, 0.4), judged_on="other data", rescore=rescore)
    old, new = "version 1 (validation Dice 0.300", "version 2 (validation Dice 0.400"
    assert f"champion: {old}, held out 0.700) -> {new}, held out 0.700)" in line
    assert seen == [((first.root / MODEL_FILE).read_bytes(), "a b")]


def test_a_champion_that_knows_the_validation_data_stays_and_that_is_told(
    server: MlflowClient,
) -> None:
    record(*trained(1, 0.3))
    line = record(*trained(2, 0.9), judged_on="other", rescore=lambda path, seen: None)
    assert "the champion stays version 1" in line
    assert "it was trained on these validation data or doesn't say so, or has other" in line
    assert not is_promoted()
    crown("2")
    assert is_promoted()
    for alias in (CHAMPION, PROMOTED):
        assert str(server.get_model_version_by_alias(MODEL, alias).version) == "2"
    uncrown("2")
    assert not is_promoted()


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
