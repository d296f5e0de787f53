"""A user's sweep with Ray Tune, tracked in one of several ways, to be killed.

A trial is a loop that reports each step and makes a checkpoint every fifth. It begins after `go`.
"""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.tracking.compared_loop import EVERY, numbers

WAYS = ("gliotrail's tracked_sweep", "MLflowLoggerCallback", "setup_mlflow")


def learn(config: dict[str, Any]) -> None:
    """One trial. With `kill_after_s`, its process is killed once, so long after its first step."""
    from ray import tune

    way, steps, folder, trial = (config[key] for key in ("way", "steps", "folder", "trial"))
    start = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as saved:
            start = int((Path(saved) / "step.txt").read_text())
    log: Callable[..., object] | None = None
    if way == "setup_mlflow":
        from ray.air.integrations.mlflow import setup_mlflow

        told = {"trial": trial}
        mlflow = setup_mlflow(
            told, tracking_uri=config["uri"], experiment_name=config["experiment"],
            create_experiment_if_not_exists=True,
        )  # fmt: skip
        log = mlflow.log_metrics
    marker = Path(folder) / f"killed-{trial}"
    (Path(folder) / f"began-{trial}").touch()
    while not (Path(folder) / f"go-{trial}").exists():
        time.sleep(0.01)
    if config["kill_after_s"] is not None and not marker.exists():
        marker.touch()
        end = threading.Timer(config["kill_after_s"], lambda: os.kill(os.getpid(), signal.SIGKILL))
        end.start()
    took = []
    for step in range(start + 1, steps + 1):
        time.sleep(config["step_s"])
        before = time.perf_counter()
        if log:
            log(numbers(step), step=step)
        with tempfile.TemporaryDirectory() as saved:
            made = None
            if step % EVERY == 0:
                (Path(saved) / "step.txt").write_text(str(step))
                made = tune.Checkpoint.from_directory(saved)
            tune.report({"step": step, **numbers(step)}, checkpoint=made)
        took.append((time.perf_counter() - before, 0.0))
    if way == "setup_mlflow":
        mlflow.end_run()
    told = {"steps": took, "end_s": None}
    (Path(folder) / f"took-{trial}.json").write_text(json.dumps(told))


@contextmanager
def _callbacks(way: str, uri: str, experiment: str) -> Iterator[list[Any]]:
    if way == "gliotrail's tracked_sweep":
        from gliotrail.integrations.ray_tune import tracked_sweep

        with tracked_sweep(experiment, inputs={}) as callback:
            yield [callback]
    elif way == "MLflowLoggerCallback":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        yield [MLflowLoggerCallback(tracking_uri=uri, experiment_name=experiment)]
    else:
        yield []


def main(
    way: str,
    folder: Path,
    env: Mapping[str, str],
    steps: int,
    step_s: float,
    kill_after_s: list[float | None],
    address: str,
) -> None:
    """Begin the sweep, or restore it; a trial for each of `kill_after_s`."""
    os.environ |= env | {
        "TUNE_GLOBAL_CHECKPOINT_S": "0.5",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    }
    os.chdir(folder)
    with (folder / "errors.txt").open("ab") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    import ray
    from ray import tune

    ray.init(
        address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": dict(env)}
    )
    storage, uri, experiment = (
        folder / "ray", env["MLFLOW_TRACKING_URI"], env["MLFLOW_EXPERIMENT_NAME"],
    )  # fmt: skip
    # Tune keeps sweeps of one name in one Ray in one folder before it copies them to their storage
    name = f"sweep-{folder.parent.name}-{folder.name}"
    with _callbacks(way, uri, experiment) as callbacks:
        if tune.Tuner.can_restore(f"{storage}/{name}"):
            tuner = tune.Tuner.restore(
                f"{storage}/{name}",
                trainable=tune.with_resources(learn, {"cpu": 1}),
                resume_errored=True,
            )
        else:
            space = {
                "trial": tune.grid_search(list(range(len(kill_after_s)))),
                "kill_after_s": tune.sample_from(lambda config: kill_after_s[config["trial"]]),
                "way": way, "steps": steps, "step_s": step_s, "folder": str(folder),
                "uri": uri, "experiment": experiment,
            }  # fmt: skip
            tuner = tune.Tuner(
                tune.with_resources(learn, {"cpu": 1}),
                param_space=space,
                tune_config=tune.TuneConfig(max_concurrent_trials=1),
                run_config=tune.RunConfig(
                    name=name, storage_path=str(storage), verbose=0, callbacks=callbacks,
                    failure_config=tune.FailureConfig(max_failures=5),
                ),
            )  # fmt: skip
        results = tuner.fit()
    assert not results.errors, results.errors
    (folder / "done").touch()
