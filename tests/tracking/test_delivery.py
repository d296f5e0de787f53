import math
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from gliotrail.errors import TrackingError
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.runs.tracked_run import TrackedRun
from gliotrail.runs.writer import Writer
from gliotrail.tracking.client import ID_TAG, experiment_id, find_run
from gliotrail.tracking.delivery import deliver, flatten
from tests.support.environment import in_state
from tests.support.forked import Forked
from tests.support.told import files, told
from tests.support.tracked_runs import DIGESTS, begun, finished, go_on, picture
from tests.tracking import killed_deliveries


def points_of(run: RunFolder) -> list[tuple[str, int, float, int]]:
    return sorted((p.key, p.step, p.value, p.time_ms) for p in run.points())


def forget_what_was_told(run: RunFolder) -> None:
    shutil.rmtree(run.root / "delivered")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished(tmp_path / "run")


def test_mlflow_is_told_all_that_is_final(run: RunFolder, server: MlflowClient) -> None:
    of = told(server, deliver(run, server))
    description, ended = run.describe(), run.ended()
    assert ended is not None
    assert len(of["points"]) == 6
    assert of["points"] == points_of(run)
    assert of["params"] == {
        "model.name": "unet3d", "model.depth": "2", "threshold": "0.4", "size": "16x16x16",
    }  # fmt: skip
    assert of["tags"][ID_TAG] == description["id"]
    assert of["tags"]["gliotrail.ended"] == "trained to the end"
    assert of["tags"]["env.cpu"] == "1 x abacus"
    assert of["datasets"] == sorted(DIGESTS.items())
    assert of["times"] == (description["started_ms"], ended["time_ms"])
    assert of["status"] == "FINISHED"
    assert of["outputs"] == [of["models"][0][0]]
    assert [status for _, status, _ in of["models"]] == ["READY"]
    assert "params.yaml" in of["files"]


def test_pictures_have_their_step_and_a_small_copy(
    run: RunFolder, server: MlflowClient, tmp_path: Path
) -> None:
    run_id = deliver(run, server)
    names = files(server, run_id, "images")
    for step in (1, 2, 3):
        time_ms = next(p.time_ms for p in run.points() if p.step == step)
        whole, small = sorted(
            (name for name in names if f"+step+{step}+" in name), key=lambda n: n.endswith(".webp")
        )
        assert whole.startswith(f"images/validation+step+{step}+timestamp+{time_ms}+")
        assert small == whole.removesuffix(".png") + "+compressed.webp"
        with Image.open(server.download_artifacts(run_id, whole, str(tmp_path))) as image:
            assert image.getpixel((0, 0)) == step
    assert len(names) == 6
    assert server.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"


def test_pictures_are_named_as_mlflow_names_its_own(run: RunFolder, server: MlflowClient) -> None:
    run_id = deliver(run, server)
    ours = files(server, run_id, "images")
    with Image.open(run.history()[0].pictures()[0]) as image:
        server.log_image(run_id, image.convert("RGB"), key="validation", step=3, timestamp=1234)
    theirs = sorted(set(files(server, run_id, "images")) - set(ours))
    some_id, some_time = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", r"\+timestamp\+\d+\+"
    pattern = re.compile(
        rf"images/validation\+step\+3{some_time}{some_id}(\+compressed\.webp|\.png)"
    )
    assert len(theirs) == 2
    assert all(pattern.fullmatch(name) for name in theirs)
    assert len([name for name in ours if pattern.fullmatch(name)]) == 2


def test_again_is_as_once(run: RunFolder, server: MlflowClient) -> None:
    run_id = deliver(run, server)
    once = told(server, run_id)
    assert deliver(run, server) == run_id
    assert told(server, run_id) == once
    forget_what_was_told(run)
    assert deliver(run, server) == run_id
    assert told(server, run_id) == once


def test_files_that_come_later_arrive_and_a_changed_one_again(
    run: RunFolder, server: MlflowClient, tmp_path: Path
) -> None:
    run_id = deliver(run, server)
    run.attach("trials.csv", b"trial,score\n")
    run.attach("params.yaml", b"train: {seed: 8}\n")
    deliver(run, server)
    once = told(server, run_id)
    assert {"trials.csv", "params.yaml"} <= set(once["files"])
    changed = Path(server.download_artifacts(run_id, "params.yaml", str(tmp_path)))
    assert changed.read_bytes() == b"train: {seed: 8}\n"
    forget_what_was_told(run)
    deliver(run, server)
    assert told(server, run_id) == once


def test_numbers_of_the_end_are_metrics_where_they_have_a_metrics_name(
    tmp_path: Path, server: MlflowClient
) -> None:
    run = begun(tmp_path / "run")
    go_on(run, [1])
    run.end("KILLED", "stopped early", {"score": 0.5, "trial/voxels": 4096, "trial/seconds": None})
    run_id = deliver(run, server)
    forget_what_was_told(run)
    deliver(run, server)
    history = server.get_metric_history(run_id, "trial/voxels")
    assert [metric.value for metric in history] == [4096]
    assert {"score", "trial/seconds"}.isdisjoint(server.get_run(run_id).data.metrics)


def test_points_arrive_with_their_checkpoint_in_order(tmp_path: Path, server: MlflowClient) -> None:
    run = begun(tmp_path / "run")
    go_on(run, [1])
    first = told(server, deliver(run, server))
    assert (first["points"], first["status"]) == (points_of(run), "RUNNING")
    go_on(run, [2, 3])
    run_id = deliver(run, server)
    assert told(server, run_id)["points"] == points_of(run)
    history = server.get_metric_history(run_id, "val/dice_WT")
    assert [(m.step, m.value) for m in history] == [(1, 0.001), (2, 0.002), (3, 0.003)]


def test_a_run_that_went_on_in_another_way_is_not_exact_for_good(
    tmp_path: Path, server: MlflowClient
) -> None:
    run, seen = begun(tmp_path / "run"), []
    for step, threads in enumerate("1122", 1):
        writer = Writer(run, {"threads": threads, "cpu": "abacus"})
        writer.write(step, {"train/soft_dice_loss": 1})
        writer.checkpoint(step, b"")
        writer.close()
        seen.append(server.get_run(deliver(run, server)).data.tags.get("resume.exact"))
    assert seen == [None, None, "false", "false"]
    tags = server.get_run(deliver(run, server)).data.tags
    assert tags["resume.changed"] == "threads 1, from step 2 on 2"


def test_a_run_that_failed_goes_on_and_ends(tmp_path: Path, server: MlflowClient) -> None:
    run = begun(tmp_path / "run")
    statuses = []
    for step in (1, 2):
        go_on(run, [step])
        for status in ("FAILED", "KILLED"):
            run.end(status, "out of patience")
            statuses.append(told(server, deliver(run, server))["status"])
            run.reopen()
            statuses.append(told(server, deliver(run, server))["status"])
    run.end("FINISHED", "at last")
    of = told(server, deliver(run, server))
    assert statuses == ["FAILED", "RUNNING", "KILLED", "RUNNING"] * 2
    assert (of["status"], of["tags"]["gliotrail.ended"]) == ("FINISHED", "at last")
    assert of["points"] == points_of(run)


def test_a_run_lies_below_its_parent(tmp_path: Path, server: MlflowClient) -> None:
    parent = begun(tmp_path / "parent", kind="sweep")
    child = begun(tmp_path / "child", parent=parent.describe()["id"], kind="trial")
    with pytest.raises(TrackingError, match=r"no run .* in experiment tests"):
        deliver(child, server)
    above = deliver(parent, server)
    assert told(server, deliver(child, server))["tags"]["mlflow.parentRunId"] == above


def test_a_new_database_is_told_all_over(
    run: RunFolder, server: MlflowClient, database: Path, tmp_path: Path
) -> None:
    once = told(server, deliver(run, server))
    experiment = experiment_id(server, "tests")
    server.delete_run(deliver(run, server))
    again = deliver(run, server)
    assert told(server, again)["points"] == once["points"]
    assert [r.info.run_id for r in server.search_runs([experiment])] == [again]


def test_a_run_of_another_server_is_another_matter(
    run: RunFolder, server: MlflowClient, tmp_path: Path, database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = deliver(run, server)
    shutil.copy(database, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    other = MlflowClient(f"sqlite:///{tmp_path / 'other.db'}")
    second = deliver(run, other)
    assert told(other, second)["points"] == told(server, first)["points"]
    assert find_run(server, "tests", run.describe()["id"]).info.run_id == first  # type: ignore[union-attr]


def test_a_damaged_segment_is_not_delivered(run: RunFolder, server: MlflowClient) -> None:
    segment = run.history()[1].folder / "segment.jsonl"
    segment.write_bytes(segment.read_bytes()[:-3])
    with pytest.raises(TrackingError, match=r"segment\.jsonl: sha256"):
        deliver(run, server)
    delivered = find_run(server, "tests", run.describe()["id"])
    assert delivered is not None
    assert {step for _, step, _, _ in told(server, delivered.info.run_id)["points"]} == {1}


def test_without_a_model_none_is_logged(run: RunFolder, server: MlflowClient) -> None:
    (run.root / MODEL_FILE).unlink()
    of = told(server, deliver(run, server))
    assert (of["outputs"], of["models"]) == ([], [])


def test_nested_params_are_flat_and_no_longer_than_mlflow_takes() -> None:
    values = {"a": {"b": {"c": 1}, "d": [1, "x"]}, "e": None, "f": "x" * 7000}
    flat = flatten(values)
    assert flat.pop("f") == "x" * 6000
    assert flat == {"a.b.c": "1", "a.d": "[1, 'x']", "e": "None"}


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.long)])
def test_what_is_killed_between_any_two_calls_to_mlflow_loses_and_doubles_nothing(
    every: int, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a process of its own, killed before its n-th call to MLflow or note of one."""
    shutil.copy(database, tmp_path)
    in_state(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    process = Forked(tmp_path / "printed.txt", killed_deliveries.main, tmp_path, every)
    assert process.wait(280) == 0, process.printed()
    killed = dict(line.split() for line in process.printed().splitlines())
    assert int(killed["points"]) > 15
    assert int(killed["model"]) > 5
    assert int(killed["evaluation"]) > 10


def test_a_run_of_which_an_older_version_told_less_is_delivered(
    tmp_path: Path, server: MlflowClient
) -> None:
    made = finished(tmp_path / "made")
    run = RunFolder(tmp_path / "older")
    run.begin({"id": "1", "name": "one", "experiment": "tests", "started_ms": 1000})
    writer = Writer(run)
    writer.attach("validation.png", picture(1))
    writer.checkpoint(1, b"a picture and no point")
    writer.close()
    (made.root / MODEL_FILE).rename(run.root / MODEL_FILE)
    (run.root / "ended.json").write_text('{"status": "FINISHED", "time_ms": 2000}')
    of = told(server, deliver(run, server))
    assert (of["status"], of["times"], of["points"]) == ("FINISHED", (1000, 2000), [])
    assert [status for _, status, _ in of["models"]] == ["READY"]
    assert len([name for name in of["files"] if name.startswith("images/")]) == 2


def test_numbers_of_any_name_time_and_size_arrive_once(
    tmp_path: Path, server: MlflowClient
) -> None:
    folder = begun(tmp_path / "run")
    run = TrackedRun(folder)
    many = {f"layer {n}/norm": float(n) for n in range(2500)}
    odd = {"schön [%]": 1.0, "x" * 300: 2.0, "loss": math.nan, "norm": math.inf}
    run.report(1, many, time_ms=1234)
    run.report(1, odd, time_ms=1235)
    run.finish()
    run.close()
    of = told(server, deliver(folder, server))
    assert len({key for key, _, _, _ in of["points"]}) == len(of["points"]) == 2504
    assert {(key, 1, value, 1234) for key, value in many.items()} <= set(of["points"])
    assert {time for _, _, _, time in of["points"]} == {1234, 1235}
    assert of["tags"]["gliotrail.not_finite"] == "norm inf at step 1; loss nan at step 1"
