"""Ways to track a loop in MLflow, side by side, by the same loop and the same kills.

    python -m tests.tracking.compared --number 20 --seed 1

The loop's process is killed by SIGKILL at a random moment, looked at 10 seconds later, and started
again until it comes to its end; what MLflow has is read from its database by SQL.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

from tests.support.database import Database
from tests.support.projects import ROOT
from tests.tracking.compared_loop import WAYS, numbers

STEPS, STEP_S, LOOKED_AT_S = 60, 0.02, 10.0


class Loop:
    """Starts of the loop in a folder of its own."""

    def __init__(self, way: str, folder: Path, uri: str) -> None:
        self.way, self.folder = way, folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("GLIOTRAIL_")} | {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_ARTIFACTS_DESTINATION": str(folder),
            "GLIOTRAIL_STATE": str(folder / "state"),
            "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
            "GIT_PYTHON_REFRESH": "quiet",
        }

    def start(self, steps: int = STEPS, step_s: float = STEP_S) -> subprocess.Popen[str]:
        """Its process."""
        (self.folder / "began").unlink(missing_ok=True)
        words = [self.way, str(self.folder), str(steps), str(step_s)]
        with (self.folder / "errors.txt").open("a") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.tracking.compared_loop", *words],
                cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def until_began(self, process: subprocess.Popen[str]) -> None:
        """Until it is at its steps, or at its end."""
        while process.poll() is None and not (self.folder / "began").exists():
            time.sleep(0.01)


def prepared(folder: Path) -> str:
    """An empty database, made before anything is killed."""
    (folder / "mlflow.db").write_bytes(_empty())
    return f"sqlite:///{folder}/mlflow.db"


@cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        make = "import mlflow; mlflow.MlflowClient().search_experiments()"
        env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        subprocess.run([sys.executable, "-c", make], cwd=folder, env=env, check=True)
        return (Path(folder) / "mlflow.db").read_bytes()


def told(uri: str) -> tuple[int, int, int, list[str]]:
    """Points lost, doubled and wrong of all runs together, and statuses."""
    database = Database(uri)
    rows = database.ask("select key, step, value from metrics")
    counts = Counter((key, step) for key, step, _ in rows)
    wanted = {(k, s): v for s in range(1, STEPS + 1) for k, v in numbers(s).items()}
    lost = len(wanted.keys() - counts.keys())
    doubled = sum(n - 1 for n in counts.values())
    wrong = sum(wanted.get((key, step)) != value for key, step, value in rows)
    return lost, doubled, wrong, [str(s) for (s,) in database.ask("select status from runs")]


def of_kill(way: str, moment: float) -> Counter[str]:
    """One kill of the loop's process, at a share of its steps' time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = prepared(folder)
        loop = Loop(way, folder, uri)
        process = loop.start()
        loop.until_began(process)
        time.sleep(moment * STEPS * STEP_S)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen = Counter({"kills": 1})
        ends = time.monotonic() + LOOKED_AT_S
        while (statuses := told(uri)[3]) and "RUNNING" in statuses and time.monotonic() < ends:
            time.sleep(0.5)
        seen["RUNNING after it"] += "RUNNING" in statuses
        seen += finished(loop, uri)
        return seen


def finished(loop: Loop, uri: str) -> Counter[str]:
    """Start it until it comes to its end; what is amiss then."""
    seen: Counter[str] = Counter()
    for _ in range(5):
        process = loop.start()
        process.communicate(timeout=900)
        if process.returncode == 0:
            break
        seen["failed starts"] += 1
    lost, doubled, wrong, statuses = told(uri)
    seen += Counter({"lost": lost, "doubled": doubled, "wrong values": wrong})
    seen["wrong status at the end"] += statuses != ["FINISHED"]
    return seen


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    totals: dict[str, Counter[str]] = {way: Counter() for way in options.ways}
    for _ in range(options.number):
        moment = chance.random()
        for way in options.ways:
            totals[way] += of_kill(way, moment)
            print(way, f"{moment:.3f}", dict(totals[way]), flush=True)


if __name__ == "__main__":
    main()
