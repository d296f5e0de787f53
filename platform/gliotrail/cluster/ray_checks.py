"""The checks of `gliotrail doctor` of Ray and of this machine's GPUs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import requests

from gliotrail.cluster.connection import cpus_here
from gliotrail.tracking.server_checks import PATIENCE_S, Finding, clock, is_loopback

_PORT: Final = 8265


def gpus() -> Iterator[Finding]:
    """The GPUs that PyTorch can use here, or why it can't."""
    import torch

    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            of = torch.cuda.get_device_properties(n)
            text = f"{of.name}, {of.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            yield Finding("GPU", "ok", f"{text}, driver {_driver() or 'unknown'}, {bf16}")
    elif driver := _driver():
        built = torch.version.cuda or "none: a build for CPUs"
        do = "update the driver, or install PyTorch's build for CUDA"
        yield Finding("GPU", "failed", f"driver {driver}, but PyTorch's CUDA is {built}", do)
    else:
        yield Finding("GPU", "none", "no GPU: trains on the CPU")


def _driver() -> str | None:
    """The NVIDIA driver's version; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def ray() -> Iterator[Finding]:
    """Whether the cluster at RAY_ADDRESS answers, whom it lets in, its version and its nodes."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding("Ray", "ok", f"on this machine, {cpus_here()} CPUs, behind its own token")
        return
    dashboard = dashboard_of(address)
    try:
        answer = _get(f"{dashboard}/api/version", token())
        stranger = _get(f"{dashboard}/api/version", None)
    except requests.RequestException as error:
        do = "start it, or mend RAY_ADDRESS (and RAY_API_SERVER_ADDRESS, if that is set)"
        text = f"{dashboard} does not answer: {type(error).__name__}"
        yield Finding("Ray", "failed", text, do)
        return
    if answer.status_code != 200:
        do = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
        yield Finding(
            "Ray", "failed", f"{dashboard} refuses this token: HTTP {answer.status_code}", do
        )
        return
    yield _of_version(dashboard, answer.json()["ray_version"], stranger.status_code == 200)
    yield _nodes(_get(f"{dashboard}/api/v0/nodes?detail=true", token()).json())
    yield clock("Ray's head", answer)


def _of_version(dashboard: str, its: str, open_to_all: bool) -> Finding:
    from importlib.metadata import version

    if open_to_all and not is_loopback(dashboard):
        do = "start it with RAY_AUTH_MODE=token: anyone who reaches it can run any code"
        return Finding("Ray", "failed", f"{dashboard} lets anyone in", do)
    if its != version("ray"):
        text = f"{dashboard} has ray {its}, here is {version('ray')}"
        return Finding("Ray", "failed", text, "install the same on both")
    return Finding("Ray", "ok", f"{dashboard} answers{'' if open_to_all else ', by token'}")


def _nodes(answer: dict[str, Any]) -> Finding:
    rows = answer["data"]["result"]["result"]
    alive = [row for row in rows if row["state"] == "ALIVE"]
    have = [row.get("resources_total") or {} for row in alive]
    cpus, gpus = (sum(int(node.get(name, 0)) for node in have) for name in ("CPU", "GPU"))
    text = f"{len(alive)} alive, {len(rows) - len(alive)} dead: {cpus} CPUs, {gpus} GPUs"
    if cpus:
        return Finding("Ray nodes", "ok", text)
    return Finding("Ray nodes", "failed", text, "start nodes that have CPUs")


def dashboard_of(address: str) -> str:
    """The address for jobs: RAY_API_SERVER_ADDRESS, else the usual port of the cluster's head."""
    given = os.environ.get("RAY_API_SERVER_ADDRESS")
    host = address.rpartition("//")[2].rpartition(":")[0] or "127.0.0.1"
    return (given or f"http://{host}:{_PORT}").rstrip("/")


def token() -> str | None:
    """The cluster's token, as Ray itself would find it."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    return path.read_text().strip() if path.is_file() else None


def _get(address: str, token: str | None) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(address, headers=headers, timeout=PATIENCE_S)
