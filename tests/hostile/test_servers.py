"""Nobody comes in without a password or a token, and none who has one gets out of the artifacts.

The payloads are those published with MLflow's CVEs.
"""

import base64
import http.client
import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.hostile.conftest import Tally
from tests.imaging.test_download import Server
from tests.support.services import free_port, kill_all

if TYPE_CHECKING:
    from infra.local.settings import Settings

pytestmark = [pytest.mark.long, pytest.mark.needs_postgres, pytest.mark.timeout(600)]

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
EXPERIMENTS = "/api/2.0/mlflow/experiments/search?max_results=1"
OPEN = ("/health", "/version", "/favicon.ico", "/server-info")
"""What MLflow shows to everyone: whether it lives, and in which version."""
SECRET = b"not for others"
PROMPT = {"key": "mlflow.prompt.is_prompt", "value": "true"}


@dataclass(frozen=True)
class Asker:
    """Asks a server on loopback, byte for byte: other clients tidy paths up."""

    port: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, path, content, {**kind, **self.headers, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def known(services: "Settings") -> Asker:
    """One who has the password."""
    return Asker(services.ports["mlflow"], basic("gliotrail", services.secrets["mlflow"]))


# MLflow


def routes() -> set[tuple[str, str]]:
    """Each method and path that MLflow's server answers, with `1` for what is variable."""
    from fastapi.routing import APIRoute
    from mlflow.server import app
    from mlflow.server.fastapi_app import create_fastapi_app

    found = {
        (method, re.sub("{[^}]*}", "1", route.path))
        for route in create_fastapi_app(app).routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    for rule in app.url_map.iter_rules():
        path = re.sub("<[^>]*>", "1", str(rule))
        found |= {(method, path) for method in rule.methods or () if method != "OPTIONS"}
    return found


def test_mlflow_answers_no_question_without_a_password(services: "Settings", tally: Tally) -> None:
    asker, asked = Asker(services.ports["mlflow"]), sorted(routes())
    assert len(asked) > 200
    for method, path in asked:
        body = {} if method in {"POST", "PUT", "PATCH"} else None
        if not path.startswith("/static-files") and not path.endswith(OPEN):
            tally.inputs += 1
            tally.check(asker.ask(method, path, body)[0] == 401)


@pytest.mark.parametrize(
    "headers",
    [
        basic("gliotrail", "wrong"),
        basic("gliotrail", ""),
        basic("admin", "password1234"),  # once the default
        {"Authorization": "Bearer 1"},
        {"Authorization": "Basic ="},
    ],
)
def test_mlflow_takes_no_wrong_password(services: "Settings", headers: dict[str, str]) -> None:
    asker = Asker(services.ports["mlflow"], headers)
    for path in ("/", EXPERIMENTS, f"{ARTIFACTS}/a", "/get-artifact?path=a&run_uuid=1"):
        assert asker.ask("GET", path)[0] >= 400


def check_hosts(asker: Asker, path: str) -> None:
    """Its own names are answered, forged ones are not: a page of elsewhere could send them."""
    for host in ("127.0.0.1", "localhost"):
        assert asker.ask("GET", path, Host=f"{host}:{asker.port}")[0] == 200
    forged = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil@127.0.0.1")
    for host in (*forged, "127.0.0.1@evil.example", "evil.example#127.0.0.1", ""):
        for name in (host, f"{host}:{asker.port}"):
            assert asker.ask("GET", path, Host=name)[0] in {400, 403}, name
    status, _ = asker.ask("POST", path.partition("?")[0], {}, Origin="http://evil.example")
    assert status == 403


def test_mlflow_takes_no_forged_host_and_no_other_pages_orders(known: Asker) -> None:
    check_hosts(known, EXPERIMENTS)


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[tuple[psutil.Process, Asker]]:
    """`gliotrail ui`."""
    port = free_port()
    command = ["gliotrail", "ui", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        ends_s = time.monotonic() + 240
        while True:
            try:
                Asker(port).ask("GET", "/health")
                break
            except OSError:
                assert started.poll() is None and time.monotonic() < ends_s
                time.sleep(0.5)
        yield psutil.Process(started.pid), Asker(port)
    finally:
        kill_all(started.pid)
        started.wait()


def test_the_pages_that_gliotrail_opens_are_seen_from_this_machine_only(
    pages: tuple[psutil.Process, Asker],
) -> None:
    process, asker = pages
    family = {each.pid for each in (process, *process.children(recursive=True))}
    listening = {
        each.laddr.ip
        for each in psutil.net_connections("inet")
        if each.status == psutil.CONN_LISTEN and each.pid in family
    }
    assert listening == {"127.0.0.1"}
    check_hosts(asker, EXPERIMENTS)
    assert asker.ask("GET", "/", Host="evil.example")[0] == 403  # its first page is ours


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What MLflow's server could read, and must not give to anyone."""
    path = tmp_path / "secret/canary"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


def escapes(secret: Path) -> list[str]:
    """Names in an artifact's place that mean a file elsewhere, as servers may read them."""
    up = "../" * 16 + str(secret).lstrip("/")
    once = up.replace("../", "..%2f").replace("/", "%2f")
    dots = up.replace("..", "%2e%2e")
    return [
        up, once, dots, once.replace("%", "%25"), dots.replace("%", "%25"),
        dots.replace("/", "%2f").replace("%", "%2525"), up.replace("/", "\\"),
        up.replace("/", "%5c"), up.replace("../", "....//"), up.replace("../", "..;/"),
        up.replace("../", ".%00./"), f"a/{up}", f"a/b%23/{up}", f"a%3f/{up}", str(secret),
        f"/{secret}", str(secret).replace("/", "%2f"), f"file://{secret}", f"file:{secret}",
        f"file%3a%2f%2f{str(secret).replace('/', '%2f')}", f"~/{up}",
    ]  # fmt: skip


def places(folder: Path, elsewhere: Server) -> list[str]:
    """Addresses of artifacts that mean a folder of the server, or another server.

    MLflow takes some for experiments: their runs' folders are then new ones below that folder.
    """
    up = "../" * 16 + str(folder).lstrip("/")
    plain = [f"file://{folder}", f"file:{folder}", str(folder), f"file:///..{folder}", up]
    hidden = [
        f"{scheme}{mark}/{up}"
        for scheme in ("http:///", "s3://mlflow/a", "mlflow-artifacts:/a", "file:///a", "dbfs:/")
        for mark in ("?", "#", ";", "", "%3f", "%23", "..%2f", "%2e%2e")
    ]
    backwards = [
        f"file://{folder}".replace("/", "\\"),
        f"mlflow-artifacts:/{up}".replace("/", "\\"),
    ]
    return [*plain, *hidden, *backwards, elsewhere.url, f"mlflow-artifacts://{elsewhere.url[7:]}"]


def test_no_name_of_an_artifact_leads_out_of_the_artifacts(
    known: Asker, secret: Path, tally: Tally
) -> None:
    made = known.ask("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0"})[1]
    run = json.loads(made)["run"]["info"]["run_id"]
    for name in escapes(secret):
        for method, path in [
            ("GET", f"/get-artifact?run_uuid={run}&path={name}"),
            ("GET", f"/api/2.0/mlflow/artifacts/list?run_id={run}&path={name}"),
            ("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path={name}"),
            ("GET", f"{ARTIFACTS}?path={name}"),
            *((method, f"{ARTIFACTS}/{name}") for method in ("GET", "PUT", "DELETE")),
        ]:
            body = b"evil" if method in {"POST", "PUT"} else None
            _, answer = known.ask(method, path, body)
            tally.inputs += 1
            tally.check(SECRET not in answer)
            tally.check(secret.read_bytes() == SECRET)
    assert [path.name for path in secret.parent.iterdir()] == ["canary"]


def test_no_place_of_an_experiment_or_model_gives_a_servers_file_or_asks_another_server(
    known: Asker, secret: Path, tally: Tally
) -> None:
    elsewhere = Server(SECRET)

    def make(what: str, **values: Any) -> dict[str, Any]:
        status, answer = known.ask("POST", f"/api/2.0/mlflow/{what}/create", values)
        tally.inputs += 1
        return json.loads(answer) if status == 200 else {}

    def look(path: str) -> None:
        tally.check(SECRET not in known.ask("GET", path)[1])

    make("registered-models", name="poc")
    for n, place in enumerate(places(secret.parent, elsewhere)):
        experiment = make("experiments", name=f"poc{n}", artifact_location=place)
        run = make("runs", experiment_id=experiment.get("experiment_id", "0"))["run"]["info"]
        look(f"/get-artifact?run_uuid={run['run_id']}&path=canary")
        look(f"/get-artifact?run_uuid={run['run_id']}&path=")
        for values in ({}, {"run_id": run["run_id"]}, {"tags": [PROMPT]}):
            version = make("model-versions", name="poc", source=place, **values)
            number = version.get("model_version", {}).get("version", 1)
            look(f"/model-versions/get-artifact?name=poc&version={number}&path=canary")
    elsewhere.http.shutdown()
    elsewhere.http.server_close()
    assert elsewhere.asked == []


# Ray

TOKENS = [
    {},
    {"Authorization": "Bearer " + "0" * 48},
    {"Authorization": "Bearer"},
    {"X-Ray-Authorization": "Bearer 1"},
    {"Cookie": "ray-authentication-token=1"},
    basic("gliotrail", "1"),
]


@pytest.mark.parametrize("headers", TOKENS, ids=str)
def test_rays_dashboard_and_jobs_want_the_token(
    services: "Settings", headers: dict[str, str], tmp_path: Path
) -> None:
    job = {"entrypoint": f"touch {tmp_path / 'canary'}"}
    for port in ("dashboard", "ray_agent"):
        asker = Asker(services.ports[port], headers)
        kind = "job_agent/jobs/" if port == "ray_agent" else "jobs/"
        assert asker.ask("POST", f"/api/{kind}", job)[0] in {401, 403}
        for path in (
            "/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/actors", "/api/v0/logs",
            "/api/cluster_status", "/logical/actors", "/worker/traceback", "/task/cpu_profile",
            "/api/packages/gcs/a.zip", "/api/serve/applications/", "/api/v0/delay/0",
        ):  # fmt: skip
            assert asker.ask("GET", path)[0] in {401, 403, 404 if port == "ray_agent" else 401}
    time.sleep(2)
    assert not (tmp_path / "canary").exists()


def test_rays_dashboard_answers_who_has_the_token(services: "Settings") -> None:
    token = {"Authorization": f"Bearer {services.secrets['ray']}"}
    assert Asker(services.ports["dashboard"], token).ask("GET", "/api/jobs/")[0] == 200
