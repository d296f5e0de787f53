import shutil
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from gliotrail.errors import TrackingError
from gliotrail.runs.addresses import shown, tracking_uri
from gliotrail.tracking.client import (
    client,
    existing_run,
    experiment_id,
    find_run,
    one_line,
)
from gliotrail.tracking.delivery import deliver
from tests.support.environment import in_state
from tests.support.forked import Forked
from tests.support.tracked_runs import begun


def log_at(start_s: float, n: int) -> None:
    """Make a run and log a metric, from a moment of the monotonic clock on."""
    time.sleep(max(0, start_s - time.monotonic()))
    server = client()
    run = server.create_run(experiment_id(server, "tests"), run_name=str(n))
    server.log_metric(run.info.run_id, "n", n)


def test_four_processes_at_once_on_a_fresh_sqlite_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(tmp_path, monkeypatch)
    start_s = time.monotonic() + 0.5
    four = [Forked(tmp_path / f"{n}.txt", log_at, start_s, n) for n in range(4)]
    assert [(each.wait(240), each.printed()) for each in four] == [(0, "")] * 4
    server = client()
    found = server.search_runs([experiment_id(server, "tests")])
    assert sorted(run.data.metrics["n"] for run in found) == [0, 1, 2, 3]


def test_a_database_whose_set_up_was_killed_is_set_up_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(tmp_path, monkeypatch)
    one = Forked(tmp_path / "one.txt", log_at, 0, 1)
    # from half of its tables on MLflow can't go on
    while not any(path.stat().st_size > 5e5 for path in tmp_path.glob("**/mlflow.db")):
        time.sleep(0.001)
    one.kill()
    assert client().search_experiments()
    assert not list(tmp_path.glob("*/mlflow.db*"))


def test_mlflow_is_where_the_environment_says_else_a_file_of_this_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(tmp_path, monkeypatch)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql://me:secret@db.example.org/mlflow", "postgresql://...@db.example.org/mlflow"),
        ("https://me:p@ss@mlflow.example.org", "https://...@mlflow.example.org"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_its_password(uri: str, told: str) -> None:
    assert shown(uri) == told


def test_an_experiment_is_made_once_with_its_files_beside_the_database(
    server: MlflowClient, tmp_path: Path
) -> None:
    made = experiment_id(server, "tests")
    assert experiment_id(server, "tests") == made
    location = server.get_experiment(made).artifact_location
    assert location == (tmp_path / "state/artifacts/tests").as_uri()


def test_a_run_is_found_by_its_own_id(server: MlflowClient, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    own_id = run.describe()["id"]
    assert find_run(server, "tests", own_id) is None
    with pytest.raises(TrackingError, match=r"no run .*; deliver it with `gliotrail runs sync`"):
        existing_run(server, "tests", own_id)
    delivered = deliver(run, server)
    assert existing_run(server, "tests", own_id).info.run_id == delivered


@pytest.mark.parametrize(
    "error", [MlflowException("no\nsuch thing"), ConnectionRefusedError("no\nsuch thing")]
)
def test_what_mlflow_raises_is_one_line(error: Exception, server: MlflowClient) -> None:
    with pytest.raises(TrackingError) as told, one_line():
        raise error
    assert str(told.value) == f"{tracking_uri()}: MLflow: got {type(error).__name__}: no"


def test_an_address_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/no/such/folder/mlflow.db")
    with pytest.raises(TrackingError, match="MLflow: got "), one_line():
        client()


def test_a_state_folder_of_any_name_keeps_all_and_a_checkout_that_moved_keeps_its_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "a%20b?#c; größe&d=\\e/.gliotrail", tmp_path / "moved/.gliotrail"
    note = tmp_path / "note.txt"
    note.write_text("hello")
    in_state(old, monkeypatch)
    server = client()
    first = server.create_run(experiment_id(server, "gliotrail")).info.run_id
    server.log_artifact(first, str(note))
    assert {path.name for path in tmp_path.iterdir()} == {old.parent.name, note.name}
    shutil.copytree(old.parent, new.parent)
    shutil.rmtree(old.parent)
    in_state(new, monkeypatch)
    server = client()
    assert "was copied or moved" in capsys.readouterr().err
    assert Path(server.download_artifacts(first, note.name)).read_text() == "hello"
    second = server.create_run(experiment_id(server, "gliotrail")).info.run_id
    server.log_artifact(second, str(note))
    assert {path.name for path in tmp_path.iterdir()} == {"moved", note.name}
    client()
    assert capsys.readouterr().err == ""
