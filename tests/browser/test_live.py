"""How soon a training's points are in MLflow, and on its page in a browser."""

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
from tests.support.environment import in_state
from tests.support.services import Pages
from tests.support.tracked_runs import begun

pytestmark = [pytest.mark.needs_chromium, pytest.mark.long]
KEY = "train/soft_dice_loss"
PLOTTED = """
const plots = [...document.querySelectorAll(".js-plotly-plot")];
return plots.flatMap(plot => plot.data).flatMap(line => [...line.y]);
"""


def test_a_final_point_is_in_mlflow_and_on_an_open_page_within_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gliotrail.tracking.client import client, find_run

    assert CHECKPOINT_EVERY_S <= 60
    in_state(tmp_path, monkeypatch)
    run = begun(tmp_path / "runs/live")
    server = client()
    pages = Pages(tmp_path / "log")
    pages.start()
    browser = Browser(tmp_path)
    try:
        pages.wait()
        claim(run)
        delivery, writer = DeliveryThread([run]), Writer(run)
        told_s, shown_s = [], []

        def final(step: int) -> tuple[float, float]:
            """A new point's value, and when its checkpoint made it final."""
            value = 0.1234 + step / 10
            writer.write(step, {KEY: value})
            writer.checkpoint(step, b"state")
            return value, time.monotonic()

        for step in range(1, 5):
            value, final_s = final(step)
            known = browser.until(lambda: find_run(server, "tests", run.describe()["id"]))
            run_id = known.info.run_id

            def told(value: float = value, run_id: str = run_id) -> bool:
                return value in [p.value for p in server.get_metric_history(run_id, KEY)]

            browser.until(told)
            told_s.append(time.monotonic() - final_s)
        page = f"{pages.uri}/#/experiments/{known.info.experiment_id}/runs/{run_id}/model-metrics"
        browser.open(f"{page}?{TRAINING}")
        browser.until(lambda: value in browser.driver.execute_script(PLOTTED))
        for step in range(5, 9):  # nobody loads the page again
            value, final_s = final(step)
            browser.until(lambda value=value: value in browser.driver.execute_script(PLOTTED))
            shown_s.append(time.monotonic() - final_s)
        browser.look("live")
        print(f"from a checkpoint to MLflow: {', '.join(f'{s:.1f}' for s in told_s)} s")
        print(f"to a page that is open: {', '.join(f'{s:.1f}' for s in shown_s)} s")
        assert max(told_s[1:]) <= 10  # the first waits for MLflow's import, too
        assert max(shown_s) <= 10
        delivery.close()
    finally:
        release(run)
        browser.close()
        pages.kill()
