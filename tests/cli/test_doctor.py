"""`gliotrail doctor` beside servers that are as they must be, and as they must not."""

import json
import re
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time

import pytest

from gliotrail.cluster import ray_checks as of_cluster
from gliotrail.tracking import server_checks as checks

SECRET = "not-for-strangers"


class Server(BaseHTTPRequestHandler):
    """Answers as Ray's dashboard and MLflow's server do, to those who know the secret."""

    version, apart_s, open_to_all, cpus, by_proxy = "2.60.0", 0, False, 4, False

    def do_GET(self):
        knows = SECRET in self.headers.get("Authorization", "") or self.open_to_all
        if "Basic" in self.headers.get("Authorization", ""):
            knows = True
        if self.by_proxy:  # it is told the whole address
            self.path = "/" + self.path.split("/", 3)[3]
        public = self.path == "/version"
        node = {"state": "ALIVE", "resources_total": {"CPU": self.cpus, "GPU": 1}}
        body = {
            "/version": self.version,
            "/api/version": json.dumps({"ray_version": self.version}),
        }.get(self.path, json.dumps({"data": {"result": {"result": [node, {"state": "DEAD"}]}}}))
        self.send_response_only(200 if knows or public else 401)
        self.send_header("Date", formatdate(time() + self.apart_s, usegmt=True))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_): ...


@pytest.fixture
def serve():
    """Starts a server with other answers; where it is."""
    servers = []

    def start(**answers):
        handler = type("Handler", (Server,), answers)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def of_ray(serve, monkeypatch):
    """What is found of a cluster that answers so."""

    def found(token=SECRET, **answers):
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", serve(**answers))
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        return {finding.check: finding for finding in of_cluster.ray()}

    return found


def test_a_cluster_that_is_as_it_must_be(of_ray):
    found = of_ray()
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["Ray nodes"].text == "1 alive, 1 dead: 4 CPUs, 1 GPUs"
    assert found["Ray"].text.endswith("by token")


@pytest.mark.parametrize(
    ("answers", "check", "told", "do"),
    [
        ({"token": "a-guess"}, "Ray", "refuses this token: HTTP 401", "RAY_AUTH_TOKEN_PATH"),
        ({"version": "2.9.0"}, "Ray", "has ray 2.9.0, here is 2.60.0", "the same on both"),
        ({"cpus": 0}, "Ray nodes", "0 CPUs", "start nodes"),
        ({"apart_s": -400}, "clock", r"(399|400|401) s from", "NTP"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_told_with_what_to_do(answers, check, told, do, of_ray):
    finding = of_ray(**answers)[check]
    assert finding.state == "failed"
    assert re.search(told, finding.text)
    assert do in finding.do


def test_a_cluster_beyond_loopback_that_lets_anyone_in_fails(of_ray, monkeypatch):
    monkeypatch.setattr(of_cluster, "is_loopback", lambda address: False)
    finding = of_ray(open_to_all=True)["Ray"]
    assert (finding.state, finding.text.endswith("lets anyone in")) == ("failed", True)


def test_a_cluster_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    (finding,) = of_cluster.ray()
    assert (finding.state, bool(finding.do)) == ("failed", True)


@pytest.mark.parametrize(
    ("answers", "user", "state", "told"),
    [
        ({"version": "3.17.2"}, True, "ok", "answers, by password"),
        ({"version": "3.17.2"}, False, "failed", "refuses this user: HTTP 401"),
        ({"version": "3.1.0"}, True, "warning", "has mlflow 3.1.0, here is 3.17.2"),
    ],
)
def test_mlflow(answers, user, state, told, serve, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", serve(**answers))
    if user:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    finding = next(checks.mlflow())
    assert (finding.state, told in finding.text) == (state, True)
    assert SECRET not in str(finding)


def test_mlflow_by_a_token_as_its_own_client_sends_it(serve, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", serve(version="3.17.2"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    finding = next(checks.mlflow())
    assert (finding.state, "answers, by token" in finding.text) == ("ok", True)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "another")
    finding = next(checks.mlflow())
    assert (finding.state, "MLFLOW_TRACKING_TOKEN" in finding.do) == ("failed", True)


def test_mlflow_is_asked_through_the_users_proxy(serve, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.org:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    monkeypatch.setenv("http_proxy", serve(version="3.17.2", by_proxy=True))
    finding = next(checks.mlflow())
    assert (finding.state, "answers, by token" in finding.text) == ("ok", True)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:9", "127.0.0.1:9: no answer: connection refused"),
        ("htp://x", "wanted http"),
    ],
)
def test_mlflow_that_is_away_or_at_no_address_is_one_finding(address, told, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    (finding,) = checks.mlflow()
    assert (finding.state, told in finding.text, bool(finding.do)) == ("failed", True, True)


def test_mlflow_with_certificates_that_are_not_there_is_one_finding(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/none/ca.pem")
    finding = next(checks.mlflow())
    assert finding.state == "failed"


def test_the_store_is_written_read_and_left_clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    config = tmp_path / ".dvc/config"
    config.write_text("[core]\nno_scm = true\n")
    assert [finding.state for finding in checks.store()] == ["none"]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert [finding.state for finding in checks.store()] == ["failed"]

    config.write_text(f"[core]\nremote = a\nno_scm = true\n['remote \"a\"']\nurl = {tmp_path}/s\n")
    assert [finding.state for finding in checks.store()] == ["ok"]
    assert not [path for path in Path("s").rglob("*") if path.is_file()]

    (tmp_path / "s2").write_text("a file")
    config.write_text(config.read_text().replace(f"{tmp_path}/s", f"{tmp_path}/s2"))
    (finding,) = checks.store()
    assert (finding.state, "keys" in finding.do) == ("failed", True)


def test_versions_are_compared_with_the_pins(monkeypatch):
    right = next(checks.machine())
    assert (right.state, right.text.count("mlflow ")) == ("ok", 1)  # several extras have it
    monkeypatch.setattr(checks, "version", lambda name: "1.0")
    finding = next(checks.machine())
    assert finding.state == "failed"
    assert "ray: wanted 2.60.0, got 1.0" in finding.text
    assert "make setup" in finding.do
