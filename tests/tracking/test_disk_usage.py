import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gliotrail.errors import TrackingError
from gliotrail.paths import state_dir
from gliotrail.runs.journal import MODEL_FILE, RUN_FILE, RunFolder
from gliotrail.runs.local_runs import read_notes, runs_dir
from gliotrail.runs.owner import claim, release
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.disk_usage import Part, parts
from gliotrail.tracking.registry import MODEL, fetch_weights, register
from tests.support.tracked_runs import begun, finished, go_on


@pytest.fixture(autouse=True)
def _outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is no checkout."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


def by_owner(days: float = 30) -> dict[str, Part]:
    return {part.owner: part for part in parts(days)}


def ended(run: RunFolder, status: str, days_ago: float = 0, **summary: object) -> RunFolder:
    run.end(status, "a test", summary)
    path = run.root / "ended.json"
    says = json.loads(path.read_text())
    says["time_ms"] -= int(days_ago * 24 * 3600 * 1000)
    path.write_text(json.dumps(says))
    return run


def trial(name: str, sweep: RunFolder | None = None) -> RunFolder:
    """FINISHED, with two checkpoints and without a model."""
    run = begun(runs_dir() / name, sweep and sweep.describe()["id"], "trial")
    go_on(run, [1, 2])
    run.end("FINISHED", "trained to its budget")
    return run


def registered(server: MlflowClient, run_id: str) -> None:
    """A version that MLflow knows to be of a run; its model is elsewhere."""
    server.create_registered_model(MODEL)
    server.create_model_version(MODEL, "elsewhere", run_id)


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def test_checkpoints_go_only_where_no_training_goes_on_from_them(server: MlflowClient) -> None:
    done, untold = trial("done"), trial("untold")
    sweep, wide = (begun(runs_dir() / f"sweep-{n}", kind="sweep") for n in (1, 2))
    says = wide.describe()
    (wide.root / RUN_FILE).write_text(json.dumps(says | {"params": {"keep": "all"}}))
    winner, loser, of_wide = trial("winner", sweep), trial("loser", sweep), trial("other", wide)
    ended(sweep, "FINISHED", trial="winner")
    live, new, old, going = (begun(runs_dir() / name) for name in ("live", "new", "old", "going"))
    for run in (live, new, old, going):
        go_on(run, [1, 2])
    ended(new, "KILLED", days_ago=29)
    ended(old, "FAILED", days_ago=31)
    claim(live)
    told = (done, sweep, wide, winner, loser, of_wide, live, new, old, going)
    for run in told:
        deliver(run, server)

    part = by_owner()["checkpoints"]
    assert part.size_bytes == 9 * 2 * 7  # `state 1` and so on: two of each run
    assert part.unneeded_bytes == 3 * 2 * 7
    assert done.states()
    part.remove()
    release(live)
    gone = {run.root.name for run in (*told, untold) if not run.states()}
    assert gone == {"done", "loser", "old", sweep.root.name, wide.root.name}
    assert all(len(run.points()) == 4 for run in (loser, old))
    assert by_owner()["checkpoints"].unneeded_bytes == 0


def test_a_run_deleted_in_mlflow_goes_with_its_artifacts_unless_a_version_is_of_it(
    server: MlflowClient, tmp_path: Path
) -> None:
    names = ("kept", "deleted", "registered", "output", "unknown")
    runs = {
        name: finished(runs_dir() / name) if name in {"deleted", "registered"} else trial(name)
        for name in names
    }
    ids = {name: deliver(run, server) for name, run in runs.items()}
    model = read_notes(runs["registered"])["model"]
    register(server, ids["registered"], model, runs["registered"].root / MODEL_FILE, {})
    output = Path("results/train")
    output.mkdir(parents=True)
    (output / RUN_FILE).write_text(json.dumps(runs["output"].describe()))
    for name in names[1:]:
        server.delete_run(ids[name])
    runs["unknown"].end("FINISHED", "once more")
    artifacts = state_dir() / "artifacts/tests"
    before, journals = size(artifacts), size(runs["deleted"].root)

    found = by_owner()
    assert found["journals, models"].unneeded_bytes == journals - 2 * 7
    assert before / 3 < found["MLflow"].unneeded_bytes < before / 2  # one of two models
    assert found["MLflow"].stays == "3 deleted runs stay"
    assert size(artifacts) == before
    for part in found.values():
        part.remove()

    assert size(artifacts) == before - found["MLflow"].unneeded_bytes
    assert {name for name, run in runs.items() if not run.has_begun()} == {"deleted"}
    lifecycle = {
        run.info.run_id: run.info.lifecycle_stage
        for view in (1, 2)
        for run in server.search_runs(["1"], run_view_type=view)
    }
    assert lifecycle == {
        ids[name]: "active" if name == "kept" else "deleted" for name in names if name != "deleted"
    }
    got = fetch_weights(f"models:/{MODEL}/1", tmp_path / "down")
    assert got.read_bytes() == (runs["registered"].root / MODEL_FILE).read_bytes()


def test_a_deleted_experiment_with_a_version_in_it_is_left_alone(server: MlflowClient) -> None:
    run_id = deliver(trial("one"), server)
    registered(server, run_id)
    server.delete_experiment(server.get_run(run_id).info.experiment_id)
    part = by_owner()["MLflow"]
    assert part.unneeded_bytes == 0
    assert part.stays == "a deleted experiment has runs that stay: restore it first"


def test_what_ray_left_goes_but_not_while_a_run_lives(server: MlflowClient) -> None:
    run = begun(runs_dir() / "one")
    left = {name: state_dir() / name / "left" for name in ("ray", "init", "code")}
    journals = by_owner()["journals, models"].size_bytes
    left["run's own ray"] = run.root / "ray"
    for path in left.values():
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * 10)
    assert by_owner()["journals, models"].size_bytes == journals  # each byte has one owner
    assert by_owner()["caches of this node"].unneeded_bytes == 10  # the others are of today
    for path in left.values():
        os.utime(path, (0, 0))
    claim(run)
    assert by_owner()["caches of this node"].unneeded_bytes == 20
    release(run)
    part = by_owner()["caches of this node"]
    part.remove()
    assert (part.unneeded_bytes, [p for p in left.values() if p.exists()]) == (40, [])


def cached(content: bytes) -> str:
    """A file in DVC's cache; its digest."""
    digest = hashlib.md5(content).hexdigest()
    path = Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return digest


def test_dvcs_cache_keeps_what_git_a_version_or_a_run_refers_to(server: MlflowClient) -> None:
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    kinds = ("workspace", "tag", "version", "unended", "nobody")
    of = {kind: cached(kind.encode()) for kind in kinds}
    git = ("git", "-c", "commit.gpgsign=false")
    for kind in ("tag", "workspace"):
        Path("data.dvc").write_text(f"outs:\n- {{md5: {of[kind]}, hash: md5, path: data}}\n")
        if kind == "tag":
            subprocess.run([*git, "init", "--quiet"], check=True)
            subprocess.run([*git, "add", "data.dvc", ".dvc/config"], check=True)
            subprocess.run([*git, "commit", "--quiet", "--message", "data"], check=True)
            subprocess.run([*git, "tag", "old"], check=True)
            subprocess.run([*git, "checkout", "--quiet", "--orphan", "new"], check=True)
            subprocess.run([*git, "branch", "--quiet", "-D", "main"], check=True)
    made, unended = trial("made"), begun(runs_dir() / "unended")
    for run, kind in ((made, "version"), (unended, "unended")):
        says = run.describe()
        says["datasets"][0]["digest"] = of[kind]
        (run.root / RUN_FILE).write_text(json.dumps(says))
    registered(server, deliver(made, server))

    part = by_owner()["DVC's cache"]
    assert part.size_bytes == sum(map(len, kinds))
    assert part.unneeded_bytes == len("nobody")
    assert "Removed 1 objects from repo cache." in part.remove()
    left = {
        path.parent.name + path.name for path in Path(".dvc/cache").rglob("*") if path.is_file()
    }
    assert left == {digest for kind, digest in of.items() if kind != "nobody"}


def test_what_dvc_cannot_read_is_told_and_nothing_goes(server: MlflowClient) -> None:
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    cached(b"data")
    subprocess.run(["git", "init", "--quiet"], check=True)
    Path("data.dvc").write_text("outs: what\n")
    with pytest.raises(TrackingError, match=r"dvc gc: got .*data\.dvc"):
        parts(30)
