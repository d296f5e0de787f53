"""What opens servers stays in the environment: nothing that is written of a run holds it."""

from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.runs.lineage import Origin, describe
from gliotrail.runs.local_runs import runs_dir
from gliotrail.tracking.sync import sync_all
from tests.support.tracked_runs import DIGESTS, go_on, model_file

SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    *("MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"),
)


def test_no_secret_of_the_environment_reaches_a_run_or_mlflow(
    server, no_outputs, tmp_path, monkeypatch
):
    for name in SECRETS:
        monkeypatch.setenv(name, f"hush-{name}")
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    run = RunFolder(runs_dir() / "one")
    told = describe(
        Origin.now(), experiment="tests", kind="train", name="a run",
        params={"model": {"name": "unet3d", "depth": 2}, "threshold": 0.4},
        inputs="one", data=list(DIGESTS), parent=None,
    )  # fmt: skip
    run.begin(told, {"params.yaml": b"train: {}\n"})
    go_on(run, [1, 2])
    model_file(run.root / MODEL_FILE)
    run.end("FINISHED", "trained to the end", {"score": 0.5, "step": 2})

    assert sync_all() == (1, {})

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in written)
    assert [path for path in written if b"hush-" in path.read_bytes()] == []
