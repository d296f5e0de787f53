"""Alerts, to a listener of this machine."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gliotrail.errors import ParamsError
from gliotrail.runs.webhook import NOT_FINITE_FILE, address, alerting
from tests.support.tracked_runs import begun, go_on

Told = list[dict[str, Any]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """What the listener was told, a line each."""
    lines: Told = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert body.count(b"\n") == 1
            lines.append(json.loads(body))
            self.send_response_only(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GLIOTRAIL_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook")
        yield lines
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "event"), [("FINISHED", "end"), ("FAILED", "failure"), ("KILLED", "stop")]
)
def test_the_end_is_told_once(status: str, event: str, told: Told, tmp_path: Path) -> None:
    run = begun(tmp_path / "one")
    with alerting(run):
        go_on(run, [1])
        run.end(status, "so it was", {"score": 0.5})
    (line,) = told
    assert (line["event"], line["status"], line["reason"]) == (event, status, "so it was")
    assert (line["run"], line["score"]) == (run.describe()["id"], 0.5)


def test_a_loss_that_is_no_number_is_told_as_that(told: Told, tmp_path: Path) -> None:
    run = begun(tmp_path / "one")
    with alerting(run):
        run.attach(NOT_FINITE_FILE, b"{}")
        run.end("FAILED", "loss at step 1")
    assert [line["event"] for line in told] == ["nan"]


def test_a_run_that_stands_still_is_told_once_until_it_goes_on(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIOTRAIL_STALL_S", "0.2")
    run = begun(tmp_path / "one")

    def wait(n: int) -> None:
        ends_s = time.monotonic() + 20
        while len(told) < n and time.monotonic() < ends_s:
            time.sleep(0.02)

    with alerting(run):
        wait(1)
        time.sleep(0.5)
        assert [line["event"] for line in told] == ["stall"]
        go_on(run, [1])
        wait(2)
    assert [line["event"] for line in told] == ["stall", "stall"]


def test_without_an_address_or_a_listener_nothing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "one")
    run.end("FINISHED", "trained to the end")
    with alerting(run):
        pass
    monkeypatch.setenv("GLIOTRAIL_WEBHOOK", "http://127.0.0.1:1/hook")
    with alerting(run):
        pass
    assert "could not post end" in capsys.readouterr().err
    monkeypatch.setenv("GLIOTRAIL_WEBHOOK", "file:///etc/passwd")
    with pytest.raises(ParamsError, match="wanted an http"):
        address()
