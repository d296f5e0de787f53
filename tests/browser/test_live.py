"""How soon a training's points are on MLflow's page, measured in a browser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gliotrail.runs.owner import claim, release
from gliotrail.runs.writer import Writer
from gliotrail.tracking.delivery_thread import DeliveryThread
from gliotrail.tracking.experiment_page import TRAINING
from gliotrail.training.driver import CHECKPOINT_EVERY_S
from tests.support.browser import Browser
from tests.support.services import MlflowServer
from tests.support.tracked_runs import begun

pytestmark = [pytest.mark.needs_chromium, pytest.mark.long]
KEY = "train/soft_dice_loss"


def test_points_are_on_the_page_ten_seconds_after_their_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is loaded again and again; by itself it asks every 30 seconds, MLflow's constant."""
    from mlflow import MlflowClient

    from gliotrail.tracking.client import find_run

    assert CHECKPOINT_EVERY_S <= 60
    server = MlflowServer(tmp_path / "log", f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "files")
    server.start()
    browser = Browser(tmp_path)
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = begun(tmp_path / "runs/live")
    try:
        server.wait()
        claim(run)
        delivery, writer = DeliveryThread([run]), Writer(run)
        took_s = []
        for step in range(1, 5):
            value = 0.1234 + step / 10
            writer.write(step, {KEY: value})
            writer.checkpoint(step, b"state")
            final_s = time.monotonic()
            client = MlflowClient(server.uri)
            known = browser.until(lambda c=client: find_run(c, "tests", run.describe()["id"]))
            page = f"{server.uri}/#/experiments/{known.info.experiment_id}/runs/{known.info.run_id}"

            def shown(page: str = page, value: float = value) -> bool:
                browser.open("about:blank")
                browser.open(f"{page}?{TRAINING}")
                browser.shows(KEY)
                return f"{value:.4f}" in browser.find("body").text

            browser.until(shown)
            took_s.append(time.monotonic() - final_s)
        browser.look("live")
        print(f"from a checkpoint to the page: {', '.join(f'{s:.1f}' for s in took_s)} s")
        assert max(took_s[1:]) <= 10  # the first waits for MLflow's start, too
        delivery.close()
    finally:
        release(run)
        browser.close()
        server.kill()
