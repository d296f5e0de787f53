import json

from mlflow import MlflowClient

from gliotrail.tracking.client import VIEW_TAG, experiment_id


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
