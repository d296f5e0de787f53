"""A user's loop of 60 steps, tracked in one of several ways, to be killed at any moment.

    python -m tests.tracking.compared_loop WAY FOLDER [STEPS] [STEP_S]

It keeps a checkpoint of its own every fifth step and goes on from it, in the same run of MLflow, as
its documentation advises. At its end it prints how long its calls of tracking took.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY = 5
Report = Callable[[int, dict[str, float]], None]
WAYS = ("log_metric", "log_metrics", "log_metrics async", "gliotrail")


def numbers(step: int) -> dict[str, float]:
    """What is reported at a step."""
    return {"loss": 1 / step, "accuracy": 1 - 1 / step}


def restored(folder: Path) -> tuple[int, str | None]:
    """The step of the last checkpoint, and the id of MLflow's run."""
    path = folder / "checkpoint.json"
    return tuple(json.loads(path.read_text())) if path.is_file() else (0, None)  # type: ignore[return-value]


def save(folder: Path, step: int, run_id: str) -> None:
    """Whole or not at all."""
    (folder / "new.json").write_text(json.dumps([step, run_id]))
    (folder / "new.json").replace(folder / "checkpoint.json")


@contextmanager
def mlflow_run(way: str, folder: Path) -> Iterator[tuple[int, Report]]:
    """MLflow's own ways."""
    import mlflow

    start, run_id = restored(folder)
    with mlflow.start_run(run_id=run_id) as run:
        save(folder, start, run.info.run_id)

        def report(step: int, metrics: dict[str, float]) -> None:
            if way == "log_metric":
                for key, value in metrics.items():
                    mlflow.log_metric(key, value, step=step)
            else:
                mlflow.log_metrics(metrics, step=step, synchronous="async" not in way)
            if step % EVERY == 0:
                save(folder, step, run.info.run_id)

        yield start, report


@contextmanager
def gliotrail_run(folder: Path) -> Iterator[tuple[int, Report]]:
    """Ours."""
    import gliotrail

    with gliotrail.track("compared", inputs={}, checkpoint_every_s=3600) as run:

        def report(step: int, metrics: dict[str, float]) -> None:
            now = step % EVERY == 0
            run.report(step, metrics, checkpoint=lambda _: None, now=now)

        yield run.last_step, report


def main(way: str, folder: Path, steps: int, step_s: float) -> None:
    """From the last checkpoint to the end."""
    run = gliotrail_run(folder) if way == "gliotrail" else mlflow_run(way, folder)
    took = []
    with run as (start, report):
        (folder / "began").touch()
        for step in range(start + 1, steps + 1):
            time.sleep(step_s)
            before = time.perf_counter()
            report(step, numbers(step))
            took.append(time.perf_counter() - before)
    print(json.dumps(took), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    words = sys.argv[1:]
    main(
        words[0],
        Path(words[1]),
        int(words[2]) if len(words) > 2 else 60,
        float(words[3]) if len(words) > 3 else 0.02,
    )
