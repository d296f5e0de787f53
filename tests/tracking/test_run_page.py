from mlflow import MlflowClient

from gliotrail.runs.journal import Point
from gliotrail.segmentation import loop
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.experiment_page import SCORE
from gliotrail.tracking.run_page import NOTE_TAG, note_of
from tests.support.tracked_runs import begun, go_on


def described(kind: str = "train", **more: object) -> dict[str, object]:
    tags = {"gliotrail.kind": kind, "mlflow.source.git.commit": "abc" * 10}
    return {"id": "f00", "params": {}, "tags": tags, "datasets": []} | more


def test_it_is_told_at_the_start_and_again_at_the_end(server: MlflowClient, tmp_path) -> None:
    run = begun(tmp_path / "run")
    run_id = deliver(run, server)
    assert "**train**, goes on" in server.get_run(run_id).data.tags[NOTE_TAG]
    go_on(run, [1, 2])
    run.end("KILLED", "stopped by Ctrl-C", {})
    deliver(run, server)
    note = server.get_run(run_id).data.tags[NOTE_TAG]
    assert "KILLED: stopped by Ctrl-C" in note
    assert "validation slices" in note
    assert "unet3d, depth 2" in note


def test_what_a_person_wrote_stays(server: MlflowClient, tmp_path) -> None:
    run = begun(tmp_path / "run")
    run_id = deliver(run, server)
    server.set_tag(run_id, NOTE_TAG, "mine")
    run.end("KILLED", "why", {})
    deliver(run, server)
    assert server.get_run(run_id).data.tags[NOTE_TAG] == "mine"


def test_the_best_epoch_is_the_first_with_the_highest_score() -> None:
    points = [
        Point("val/dice_mean_regions", value, step, 0)
        for step, value in ((25, 0.3), (50, 0.6), (75, 0.6), (100, 0.5))
    ]
    note = note_of(described(), None, points, [], "#")
    assert "best epoch | 2 of 4, step 50, validation Dice 0.600" in note


def test_a_sweeps_best_trials_come_first_and_failed_ones_not() -> None:
    rows = [
        {"trial": "a", "learning_rate": "0.0001", "status": "FINISHED", "score": "0.5"},
        {"trial": "b", "learning_rate": "0.001", "status": "FINISHED", "score": "0.7"},
        {"trial": "c", "learning_rate": "0.01", "status": "STOPPED", "score": "0.9"},
        {"trial": "d", "learning_rate": "0.1", "status": "FAILED", "score": ""},
    ]
    note = note_of(described("sweep"), None, [], [], "#", rows)
    table = [line for line in note.splitlines() if line.startswith("| 0.")]
    assert table == [
        "| 0.001 | FINISHED | 0.700 |",
        "| 0.0001 | FINISHED | 0.500 |",
        "| 0.01 | STOPPED | 0.900 |",
    ]
    assert "The best of 4 trials" in note
    assert "gliotrail reproduce" not in note


def test_runs_are_sorted_by_what_trainings_are_judged_by() -> None:
    assert loop.SCORE == SCORE
