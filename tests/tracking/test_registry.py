from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from gliotrail.errors import TrackingError
from gliotrail.files import sha256
from gliotrail.runs.journal import MODEL_FILE
from gliotrail.runs.local_runs import runs_dir
from gliotrail.segmentation.ensemble import join
from gliotrail.tracking.client import experiment_id
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.ensemble_run import register_ensemble
from gliotrail.tracking.registry import (
    CHAMPION,
    MODEL,
    champion,
    download_weights,
    fetch_weights,
    log_model,
    promote,
    register,
)
from gliotrail.tracking.trace import trace
from tests.support.tracked_runs import DIGESTS, finished, model_file

DATA, OTHER_DATA = "validated on this", "validated on that"


def version(server: MlflowClient, folder: Path, seed: int) -> ModelVersion:
    """Another registered model."""
    experiment = experiment_id(server, "tests")
    run_id = server.create_run(experiment).info.run_id
    weights = model_file(folder / f"{seed}.safetensors", seed)
    model_id = log_model(server, experiment, run_id, weights, threshold=0.5)
    return register(server, run_id, model_id, weights, {})


def never(holder: ModelVersion) -> tuple[float, float, str]:
    raise AssertionError("nobody is to be scored again")


def test_the_same_model_is_one_model_and_one_version(server: MlflowClient, tmp_path: Path) -> None:
    experiment = experiment_id(server, "tests")
    run_id = server.create_run(experiment).info.run_id
    weights = model_file(tmp_path / "model.safetensors")
    models = {log_model(server, experiment, run_id, weights, threshold=0.5) for _ in range(2)}
    assert len(models) == 1
    versions = [register(server, run_id, min(models), weights, {"a": "b"}) for _ in range(2)]
    assert [v.version for v in versions] == [versions[0].version] * 2
    known = server.search_model_versions(f"name = '{MODEL}'")
    assert [(v.run_id, v.tags["a"]) for v in known] == [(run_id, "b")]
    assert known[0].tags["gliotrail.weights_sha256"] == sha256(weights)


def test_other_weights_of_the_run_and_the_weights_of_another_run_are_other_versions(
    server: MlflowClient, tmp_path: Path
) -> None:
    experiment = experiment_id(server, "tests")
    numbers = set()
    for run_id in [server.create_run(experiment).info.run_id for _ in range(2)]:
        for seed in (1, 2):
            weights = model_file(tmp_path / f"{seed}.safetensors", seed)
            model_id = log_model(server, experiment, run_id, weights, threshold=0.5)
            numbers.add(int(register(server, run_id, model_id, weights, {}).version))
    assert numbers == {1, 2, 3, 4}


def test_the_champion_moves_only_to_a_better_score(server: MlflowClient, tmp_path: Path) -> None:
    versions = {
        score: version(server, tmp_path, seed)
        for seed, score in enumerate((0.5, 0.4, 0.50001, 0.6))
    }
    assert champion(server) is None
    won = {score: promote(server, v, score, DATA, never) for score, v in versions.items()}
    assert won == {0.5: True, 0.4: False, 0.50001: True, 0.6: True}
    equal = version(server, tmp_path, seed=9)
    assert not promote(server, equal, 0.6, DATA, never)
    holder = champion(server)
    assert holder is not None
    assert holder.version == versions[0.6].version
    assert promote(server, versions[0.6], 0.6, DATA, never)  # again: it still is


@pytest.mark.parametrize("better_first", [True, False])
def test_of_two_that_challenge_at_once_the_better_one_is_champion(
    better_first: bool, server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each call to MLflow of the one, the other is promoted from start to end."""
    holder, worse, better = (version(server, tmp_path, seed) for seed in (1, 2, 3))
    inner, outer = ((better, 0.8), (worse, 0.7))[:: 1 if better_first else -1]
    names = [name for name, call in vars(MlflowClient).items()
             if callable(call) and not name.startswith("_")]  # fmt: skip
    for n in range(1, 50):
        for made in (holder, worse, better):
            for tag in ("score", "judged_on", "challenges"):
                server.delete_model_version_tag(MODEL, made.version, f"gliotrail.{tag}")
        server.set_registered_model_alias(MODEL, CHAMPION, holder.version)
        server.set_model_version_tag(MODEL, holder.version, "gliotrail.score", "0.6")
        server.set_model_version_tag(MODEL, holder.version, "gliotrail.judged_on", DATA)
        calls, depth = 0, 0

        def counted(call: Callable[..., Any], n: int = n) -> Callable[..., Any]:
            def wrapped(*args: Any, **more: Any) -> Any:
                nonlocal calls, depth
                calls += depth == 0
                depth += 1
                if depth == 1 and calls == n:
                    promote(server, *inner, DATA, never)
                try:
                    return call(*args, **more)
                finally:
                    depth -= 1

            return wrapped

        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
            promote(server, *outer, DATA, never)
        if calls < n:
            promote(server, *inner, DATA, never)
        got = champion(server)
        assert got is not None
        assert got.version == better.version, n
        if calls < n:
            break
    assert n > 5


@pytest.mark.parametrize(("held", "won"), [(0.9, False), (0.3, True)])
def test_judged_on_other_data_both_are_scored_again_first(
    held: float, won: bool, server: MlflowClient, tmp_path: Path
) -> None:
    old, new = version(server, tmp_path, 1), version(server, tmp_path, 2)
    assert promote(server, old, 0.5, OTHER_DATA, never)
    asked = []

    def rescore(holder: ModelVersion) -> tuple[float, float, str]:
        asked.append(holder.version)
        return 0.6, held, DATA

    assert promote(server, new, 0.6, DATA, rescore) == won
    assert asked == [old.version]
    assert promote(server, new, 0.6, DATA, never) == won  # its new score is remembered
    of = server.get_model_version(MODEL, old.version).tags
    assert (of["gliotrail.score"], of["gliotrail.judged_on"]) == (repr(held), DATA)


def test_on_part_of_the_data_the_scores_there_decide(server: MlflowClient, tmp_path: Path) -> None:
    old, new = version(server, tmp_path, 1), version(server, tmp_path, 2)
    assert promote(server, old, 0.5, OTHER_DATA, never)
    assert promote(server, new, 0.9, DATA, lambda holder: (0.2, 0.3, "part")) is False
    assert server.get_model_version(MODEL, new.version).tags["gliotrail.judged_on"] == DATA


def test_a_champion_that_was_trained_on_all_that_is_judged_on_stays(
    server: MlflowClient, tmp_path: Path
) -> None:
    old, new = version(server, tmp_path, 1), version(server, tmp_path, 2)
    assert promote(server, old, 0.5, OTHER_DATA, never)
    assert promote(server, new, 0.9, DATA, lambda holder: None) is None
    holder = champion(server)
    assert holder is not None
    assert holder.version == old.version


def test_a_version_that_was_made_champion_by_hand_is_scored_too(
    server: MlflowClient, tmp_path: Path
) -> None:
    by_hand, new = version(server, tmp_path, 1), version(server, tmp_path, 2)
    server.set_registered_model_alias(MODEL, CHAMPION, by_hand.version)
    assert not promote(server, new, 0.6, DATA, lambda holder: (0.6, 0.7, DATA))


def test_a_server_that_fails_is_not_taken_for_one_without_a_champion(
    server: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "state/mlflow.db").write_bytes(b"no longer a database" * 100)
    with pytest.raises((MlflowException, SQLAlchemyError)):
        champion(server)


def test_weights_come_back_and_a_changed_file_is_noticed(
    server: MlflowClient, tmp_path: Path
) -> None:
    made = version(server, tmp_path, seed=3)
    got = download_weights(server, made, tmp_path / "down")
    assert got.read_bytes() == (tmp_path / "3.safetensors").read_bytes()

    stored = [p for p in tmp_path.glob("state/artifacts/**/*.safetensors") if p.is_file()]
    assert len(stored) == 1
    content = bytearray(stored[0].read_bytes())
    content[-1] ^= 1
    stored[0].write_bytes(content)
    with pytest.raises(TrackingError, match=f"{MODEL}/1: sha256: wanted .*, got "):
        download_weights(server, made, tmp_path / "again")


def test_weights_are_fetched_by_alias_and_by_number(server: MlflowClient, tmp_path: Path) -> None:
    first, second = version(server, tmp_path, 1), version(server, tmp_path, 2)
    server.set_registered_model_alias(MODEL, CHAMPION, second.version)
    for uri, seed in ((f"models:/{MODEL}@{CHAMPION}", 2), (f"models:/{MODEL}/{first.version}", 1)):
        got = fetch_weights(uri, tmp_path / f"down{seed}")
        assert got.read_bytes() == (tmp_path / f"{seed}.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"models:/{MODEL}@{CHAMPION}", "no such model; `gliotrail models` lists"),
        (f"models:/{MODEL}/7", "no such model"),
        ("models:/nobody@champion", "no such model"),
        ("models:/a/b/c", "model URI: wanted models:/NAME@ALIAS or models:/NAME/VERSION, got"),
        ("runs:/abc/model", "model URI: wanted"),
    ],
)
def test_a_model_that_is_not_there_is_told_in_one_line(
    uri: str, message: str, server: MlflowClient, tmp_path: Path
) -> None:
    with pytest.raises(TrackingError, match=message) as caught:
        fetch_weights(uri, tmp_path / "down")
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_can_t_be_reached_is_told_in_one_line(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9: MLflow: got") as caught:
        fetch_weights(f"models:/{MODEL}@{CHAMPION}", tmp_path / "down")
    assert "\n" not in str(caught.value)


def test_an_ensemble_is_one_version_whose_run_leads_to_its_members(
    server: MlflowClient, tmp_path: Path
) -> None:
    runs = [finished(runs_dir() / name) for name in ("one", "two")]
    model_file(runs[1].root / MODEL_FILE, seed=8)
    ids = [deliver(run, server) for run in runs]
    files = [run.root / MODEL_FILE for run in runs]
    joined = tmp_path / "joined.safetensors"
    joined.write_bytes(join(files))
    made = [register_ensemble(joined, files) for _ in range(2)]
    assert {str(version.version) for version in made} == {"1"}
    found = trace(f"models:/{MODEL}/1")
    assert found["commands"] == [f"gliotrail trace {run_id}" for run_id in ids]
    assert {data["path"] for data in found["data"]} == set(DIGESTS)
    assert found["model"]["sha256"] == sha256(joined)
    assert fetch_weights(f"models:/{MODEL}/1", tmp_path / "got").read_bytes() == joined.read_bytes()
    stranger = model_file(tmp_path / "stranger.safetensors", seed=99)
    with pytest.raises(TrackingError, match=r"no run that ended with .*stranger"):
        register_ensemble(joined, [files[0], stranger])
