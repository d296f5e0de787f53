"""The checks of `gliotrail doctor` of this machine, of MLflow and of the store of data."""

import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires, version
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import MlflowHostCreds, http_request

from gliotrail.errors import GliotrailError
from gliotrail.paths import main_checkout, state_dir
from gliotrail.runs.addresses import reason, shown, tracking_uri
from gliotrail.runs.store import Store
from gliotrail.tracking.client import client, one_line

PATIENCE_S: Final = 15
_ASK: Final = "/api/2.0/mlflow/experiments/get?experiment_id=0"
_SKEW_S: Final = 5.0
_LITTLE_GB, _VERY_LITTLE_GB = 5.0, 0.5
_LITTLE_SHM_GB: Final = 0.5


@dataclass(frozen=True)
class Finding:
    """A check's result.

    state: ok, warning, failed, or none if there is nothing to check.
    do: what to do about it; always there if it failed.
    """

    check: str
    state: str
    text: str
    do: str = ""


def machine() -> Iterator[Finding]:
    """Versions, disk, shared memory."""
    yield _versions()
    yield from _disk()
    if (shm := Path("/dev/shm")).is_dir():  # noqa: S108 - looked at, not written to
        total_gb = shutil.disk_usage(shm).total / 1e9
        text = f"{total_gb:.1f} GB"
        do = "give the container more: `docker run --shm-size 4g`, or a Memory volume at /dev/shm"
        little = total_gb < _LITTLE_SHM_GB
        yield Finding("shared memory", "warning" if little else "ok", text, do if little else "")


def _versions() -> Finding:
    """Whether the installed versions are those that pyproject.toml pins."""
    wrong, right = [], [f"Python {platform.python_version()}"]
    for line in requires("gliotrail") or []:
        pin = re.fullmatch(r"([\w-]+)(?:\[[^]]*\])?==([\w.]+)(; extra ==.*)?", line)
        if pin is None:
            continue
        try:
            there = version(pin[1])
        except PackageNotFoundError:
            if pin[3]:  # of an extra that is not installed
                continue
            there = "none"
        public = there.partition("+")[0]  # torch 2.13.0+cpu is 2.13.0
        right.append(f"{pin[1]} {there}")
        wrong += [f"{pin[1]}: wanted {pin[2]}, got {there}"] if public != pin[2] else []
    if wrong:
        text = ", ".join(dict.fromkeys(wrong))
        return Finding("versions", "failed", text, "`make setup` installs them")
    return Finding("versions", "ok", ", ".join(dict.fromkeys(right)))


def _disk() -> Iterator[Finding]:
    seen = set()
    for folder in (state_dir(), main_checkout(Path.cwd()) / ".dvc/cache"):
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        if (device := there.stat().st_dev) in seen:
            continue
        seen.add(device)
        free_gb = shutil.disk_usage(there).free / 1e9
        low = "failed" if free_gb < _VERY_LITTLE_GB else "warning"
        state = "ok" if free_gb >= _LITTLE_GB else low
        do = "`gliotrail gc` removes what nothing needs; GLIOTRAIL_DISK_GB bounds checkpoints"
        text = f"{free_gb:.1f} GB free where {folder.name} is"
        yield Finding("disk", state, text, "" if state == "ok" else do)


def mlflow() -> Iterator[Finding]:
    """Whether MLflow answers, whom it lets in, and its version; a database's schema."""
    try:
        uri = tracking_uri()
    except GliotrailError as error:
        yield Finding("MLflow", "failed", str(error), "mend it, or unset it")
        return
    if not uri.startswith("http"):
        yield _database(uri)
        return
    try:
        credentials = get_default_host_creds(uri)
        answer = _as_user(credentials, "/version")
        open_to_all = _as_stranger(credentials, _ASK).status_code == 200
        known = _as_user(credentials, _ASK).status_code
    except (OSError, MlflowException) as error:  # requests' own are OSErrors
        do = "start it (`python -m infra.local start`), or mend MLFLOW_TRACKING_URI"
        yield Finding("MLflow", "failed", f"{shown(uri)}: {reason(error)}", do)
        return
    if answer.status_code == 403:
        do = "start the server with this name in --allowed-hosts"
        yield Finding("MLflow", "failed", f"{shown(uri)} doesn't know itself by this name", do)
        return
    if known != 200:
        do = "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD, are the server's"
        yield Finding("MLflow", "failed", f"{shown(uri)} refuses this user: HTTP {known}", do)
        return
    mine, its = version("mlflow"), answer.text.strip()
    if open_to_all and not is_loopback(uri):
        do = "start it with --app-name basic-auth, and --allowed-hosts"
        yield Finding("MLflow", "failed", f"{shown(uri)} lets anyone in", do)
    elif its != mine:
        do = f"install mlflow {mine} there, and `mlflow db upgrade` its database"
        yield Finding("MLflow", "warning", f"{shown(uri)} has mlflow {its}, here is {mine}", do)
    else:
        by_token = credentials.token and not credentials.username  # as MLflow chooses
        who = "" if open_to_all else ", by token" if by_token else ", by password"
        yield Finding("MLflow", "ok", f"{shown(uri)} answers{who}, mlflow {its}")
    yield clock("MLflow's", answer)


def _as_user(credentials: MlflowHostCreds, path: str) -> requests.Response:
    """Ask with all that MLflow's client sends: password or token, proxies, certificates."""
    answer: requests.Response = http_request(
        credentials, path, "GET", max_retries=0, timeout=PATIENCE_S, raise_on_status=False
    )
    return answer


def _as_stranger(credentials: MlflowHostCreds, path: str) -> requests.Response:
    """Ask through the user's proxies and certificates, but without credentials."""
    return requests.get(
        credentials.host.rstrip("/") + path,
        timeout=PATIENCE_S,
        auth=lambda request: request,  # else requests reads .netrc
        verify=credentials.verify,
        cert=credentials.client_cert_path,
    )


def _database(uri: str) -> Finding:
    try:
        with one_line():
            client().search_experiments(max_results=1)
    except GliotrailError as error:
        do = "`mlflow db upgrade`, where its schema is older; or mend MLFLOW_TRACKING_URI"
        return Finding("MLflow", "failed", str(error), do)
    return Finding("MLflow", "ok", f"{shown(uri)} answers")


def clock(whose: str, answer: requests.Response) -> Finding:
    """How far a server's clock is from this machine's; S3 refuses requests 15 minutes off."""
    date = answer.headers.get("Date")
    if date is None:
        return Finding("clock", "none", f"{whose} sends no date")
    apart_s = abs(time.time() - parsedate_to_datetime(date).timestamp())
    text = f"{whose} is {apart_s:.0f} s from this machine's"
    if apart_s <= _SKEW_S:
        return Finding("clock", "ok", text)
    return Finding("clock", "warning" if apart_s < 300 else "failed", text, "run NTP on both")


def store() -> Iterator[Finding]:
    """Whether DVC's default remote can be written, read and cleaned up; S3's clock."""
    try:
        remote = Store.of_checkout()
    except GliotrailError as error:
        needed = bool(os.environ.get("RAY_ADDRESS"))
        yield Finding("store", "failed" if needed else "none", error.what, error.do or "")
        return
    name, content = f"gliotrail/doctor/{uuid.uuid4().hex}", os.urandom(64)
    try:
        remote.write(name, content)
        same = remote.read(name) == content
        remote.remove(name)
    except (GliotrailError, OSError) as error:
        do = "mend the remote's address, or the keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        yield Finding("store", "failed", str(error), do)
    else:
        text = f"{shown(remote.url)} takes and gives"
        do = "it returned other bytes than it was sent: check the server's disks"
        yield Finding("store", "ok" if same else "failed", text, "" if same else do)
    endpoint = str(remote.config.get("endpointurl") or os.environ.get("AWS_ENDPOINT_URL") or "")
    if remote.url.startswith("s3:") and endpoint:
        try:
            yield clock("S3's", requests.get(endpoint, timeout=PATIENCE_S))
        except requests.RequestException:
            return


def outputs() -> Iterator[Finding]:
    """Whether the outputs of this checkout and MLflow agree."""
    from gliotrail.tracking.restore import disagreements

    try:
        found = list(disagreements())
    except GliotrailError as error:
        yield Finding("outputs", "failed", str(error), "mend MLflow first")
        return
    for where, what in found:
        text, _, do = what.rpartition(": ")
        yield Finding("outputs", "failed", f"{where}: {text}", do)
    if not found:
        yield Finding("outputs", "ok", "outputs and MLflow agree")


def twins() -> Iterator[Finding]:
    """Whether requests that were carried out late left twins in MLflow."""
    from gliotrail.tracking.client import client, one_line
    from gliotrail.tracking.once import twins_left
    from gliotrail.tracking.registry import MODEL

    try:
        with one_line():
            found = [twin for twin, _ in twins_left(client(), MODEL)]
    except GliotrailError as error:
        yield Finding("twins", "failed", str(error), "mend MLflow first")
        return
    for twin in found:
        yield Finding("twins", "warning", twin, "`gliotrail runs sync` closes them")
    if not found:
        yield Finding("twins", "ok", "each run, model and version is there once")


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
