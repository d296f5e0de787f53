import json

import pytest
from mlflow import MlflowClient

from gliotrail.tracking.client import experiment_id
from gliotrail.tracking.experiment_page import SCORE, VIEW_TAGS

VIEW_TAG = f"{VIEW_TAGS}gliotrail"


def test_a_new_experiment_is_of_trainings_and_has_a_view_the_best_first(
    server: MlflowClient,
) -> None:
    number = experiment_id(server, "gliotrail")
    tags = server.get_experiment(number).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert f"/experiments/{number}/runs?viewStateShareKey=gliotrail" in tags["mlflow.note.content"]
    state = json.loads(json.loads(tags[VIEW_TAG])["state"])
    assert state["orderByKey"] == "metrics.`val/dice_mean_regions`"
    assert not state["orderByAsc"]


def test_an_experiment_that_is_there_gets_what_it_lacks_and_keeps_what_a_person_wrote(
    server: MlflowClient,
) -> None:
    number = server.create_experiment("gliotrail")
    server.set_experiment_tag(number, "mlflow.note.content", "mine")
    assert experiment_id(server, "gliotrail") == number
    tags = server.get_experiment(number).tags
    assert tags["mlflow.note.content"] == "mine"
    assert VIEW_TAG in tags


def test_the_saved_charts_are_of_keys_that_runs_have_and_an_older_view_is_replaced(
    server: MlflowClient,
) -> None:
    number = experiment_id(server, "gliotrail")
    tag = f"{VIEW_TAGS}gliotrail-curves"
    once = server.get_experiment(number).tags[tag]
    state = json.loads(json.loads(once)["state"])
    keys = [chart.get("selectedMetricKeys", []) for chart in state["compareRunCharts"]]
    assert keys[0] == ["train/soft_dice_loss", "val/soft_dice_loss"]
    assert keys[1] == ["val/dice_WT", "val/dice_TC", "val/dice_ET", SCORE]
    assert keys[-1] == ["train/soft_dice_loss"]
    assert state["compareRunCharts"][-1]["lineSmoothness"] > 0
    server.set_experiment_tag(number, tag, "older")
    experiment_id(server, "gliotrail")
    assert server.get_experiment(number).tags[tag] == once


def test_an_experiment_that_was_deleted_is_restored_with_its_runs(
    server: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    number = experiment_id(server, "gliotrail")
    run_id = server.create_run(number).info.run_id
    server.delete_experiment(number)
    assert experiment_id(server, "gliotrail") == number
    assert "it is restored" in capsys.readouterr().err
    assert server.get_run(run_id).info.lifecycle_stage == "active"
    server.create_run(number)
