"""A user's loop of 60 steps in one process, tracked in one of several ways, to be killed.

It keeps a checkpoint of its own every fifth step and goes on from it, in the same run of MLflow, as
its documentation advises. `main` is called in a process of its own.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

EVERY = 5
Report = Callable[[int, dict[str, float]], None]


def numbers(step: int) -> dict[str, float]:
    """What is reported at a step: a value that no other step has."""
    return {"loss": 1 / step, "accuracy": 1 - 0.5 / step}


def restored(folder: Path) -> tuple[int, str | None]:
    """The step of the last checkpoint, and the tracker's id of the run."""
    path = folder / "checkpoint.json"
    return tuple(json.loads(path.read_text())) if path.is_file() else (0, None)  # type: ignore[return-value]


def save(folder: Path, step: int, run_id: str) -> None:
    """Whole or not at all."""
    (folder / "new.json").write_text(json.dumps([step, run_id]))
    (folder / "new.json").replace(folder / "checkpoint.json")


@contextmanager
def _mlflow(folder: Path, asynchronous: bool, batched: bool) -> Iterator[tuple[int, Report]]:
    import mlflow

    start, run_id = restored(folder)
    with mlflow.start_run(run_id=run_id) as run:
        save(folder, start, run.info.run_id)

        def report(step: int, metrics: dict[str, float]) -> None:
            if batched:
                mlflow.log_metrics(metrics, step=step, synchronous=not asynchronous)
            else:
                for key, value in metrics.items():
                    mlflow.log_metric(key, value, step=step)
            if step % EVERY == 0:
                save(folder, step, run.info.run_id)

        yield start, report


@contextmanager
def _lightning(folder: Path) -> Iterator[tuple[int, Report]]:
    """MLFlowLogger as Lightning's Trainer calls it: log_metrics a step, finalize at the end."""
    from lightning.pytorch.loggers import MLFlowLogger

    start, run_id = restored(folder)
    uri, name = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_EXPERIMENT_NAME"]
    logger = MLFlowLogger(name, tracking_uri=uri, run_id=run_id)
    save(folder, start, str(logger.run_id))

    def report(step: int, metrics: dict[str, float]) -> None:
        logger.log_metrics(metrics, step)
        if step % EVERY == 0:
            save(folder, step, str(logger.run_id))

    yield start, report
    logger.finalize("success")


@contextmanager
def _wandb(folder: Path) -> Iterator[tuple[int, Report]]:
    """Offline: what would be synced later is in files."""
    import wandb

    start, run_id = restored(folder)
    run_id = run_id or "compared"
    save(folder, start, run_id)
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    with wandb.init(
        project="compared", id=run_id, resume="allow", mode="offline", dir=folder, settings=settings
    ) as run:

        def report(step: int, metrics: dict[str, float]) -> None:
            run.log(metrics, step=step)
            if step % EVERY == 0:
                save(folder, step, run_id)

        yield start, report


@contextmanager
def _gliotrail(folder: Path) -> Iterator[tuple[int, Report]]:
    import gliotrail

    with gliotrail.track(
        os.environ["MLFLOW_EXPERIMENT_NAME"], inputs={}, checkpoint_every_s=3600
    ) as run:

        def report(step: int, metrics: dict[str, float]) -> None:
            now = step % EVERY == 0
            run.report(step, metrics, checkpoint=lambda _: None, now=now)

        yield run.last_step, report


WAYS: Mapping[str, Callable[[Path], AbstractContextManager[tuple[int, Report]]]] = {
    "gliotrail.track": _gliotrail,
    "mlflow.log_metric": lambda folder: _mlflow(folder, asynchronous=False, batched=False),
    "mlflow.log_metrics": lambda folder: _mlflow(folder, asynchronous=False, batched=True),
    "mlflow.log_metrics(synchronous=False)": lambda f: _mlflow(f, asynchronous=True, batched=True),
    "Lightning's MLFlowLogger": _lightning,
    "W&B offline": _wandb,
}


def main(way: str, folder: Path, env: Mapping[str, str], steps: int, step_s: float) -> None:
    """From the last checkpoint to the end; then `took.json` has what its calls took."""
    for name in [name for name in os.environ if name.startswith(("GLIOTRAIL_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ |= env
    os.chdir(folder)
    with (folder / "errors.txt").open("ab") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    took, end_s = [], None
    try:
        with WAYS[way](folder) as (start, report):
            (folder / "began").touch()
            for step in range(start + 1, steps + 1):
                time.sleep(step_s)
                before = time.perf_counter(), time.process_time()
                try:
                    report(step, numbers(step))
                finally:
                    took.append((time.perf_counter() - before[0], time.process_time() - before[1]))
            ended = time.perf_counter()
        end_s = time.perf_counter() - ended
    finally:
        (folder / "took.json").write_text(json.dumps({"steps": took, "end_s": end_s}))
