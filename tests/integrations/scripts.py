"""The users' scripts of this folder as processes, and what MLflow has of them."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.support.database import Database
from tests.support.projects import ROOT


def start(module: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    """A script; its working directory is the folder, and what it prints as errors is in there."""
    folder.mkdir(parents=True, exist_ok=True)
    env = os.environ | {
        "GLIOTRAIL_STATE": str(folder / "state"),
        "MLFLOW_TRACKING_URI": "",
        "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "",
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    with (folder / "errors.txt").open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", f"tests.integrations.{module}", *words],
            cwd=folder, env=env, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip


def to_its_end(process: subprocess.Popen[str], folder: Path) -> str:
    """What it printed."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, (folder / "errors.txt").read_text()
    return printed


def checkpoints(folder: Path) -> list[Path]:
    """The final ones of all runs."""
    return list(folder.glob("state/runs/*/checkpoints/*/manifest.json"))


def database(state: Path) -> Database:
    """MLflow's."""
    return Database(f"sqlite:///{state}/mlflow.db")


def values(state: Path) -> dict[tuple[str, int], list[float]]:
    """What each key has at each step, of all runs together."""
    found: dict[tuple[str, int], list[float]] = {}
    for key, step, value in database(state).ask("select key, step, value from metrics"):
        found.setdefault((key, step), []).append(value)
    return found


def points(state: Path) -> dict[str, Counter[tuple[str, int]]]:
    """Of each run, how often each key and step is there."""
    found: dict[str, Counter[tuple[str, int]]] = {}
    for run, key, step in database(state).ask("select run_uuid, key, step from metrics"):
        found.setdefault(run, Counter())[key, step] += 1
    return found


def statuses(state: Path) -> list[str]:
    """Of all runs."""
    if not (state / "mlflow.db").is_file():
        return []
    return sorted(status for (status,) in database(state).ask("select status from runs"))
