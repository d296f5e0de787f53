"""Held here by processor time, which a busy machine doesn't change. See `make tracking-cost`."""

import time
from pathlib import Path

import pytest

from gliotrail.runs.writer import Writer
from gliotrail.tracking.delivery_thread import DeliveryThread
from tests.support.tracked_runs import begun
from tests.tracking.loop_cost import SERVERS, STEP_S, address, loop


@pytest.mark.parametrize("server", [server for server in SERVERS if server != "up"])
def test_points_take_little_of_the_training_thread_whatever_the_server_does(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, steps = begun(tmp_path / "runs/one"), 200
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path))
    # no thread that is given up here asks on beside the tests after this one
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with address(server, tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        courier = DeliveryThread([run], every_s=0.05)
        writer, before_s = Writer(run), time.thread_time()
        for step in range(1, steps + 1):
            writer.write(step, {"train/soft_dice_loss": 1 / step})
            if step % 50 == 0:
                writer.checkpoint(step, b"state")
        taken_s = time.thread_time() - before_s
        courier.close(0.5)
    assert taken_s <= 0.02 * steps * STEP_S


def test_the_measurement_measures(tmp_path: Path) -> None:
    cost = loop(begun(tmp_path / "runs/one"), 3, checkpoint_every=2)
    assert 0 < cost.longest_points_s <= cost.longest_checkpoint_s
    assert 0 < cost.share < 1
