"""What a sweep's bookkeeping adds to trials that only sleep, on two cores.

    python -m tests.cluster.sweep_cost [TRIALS [SECONDS]]

An epoch sleeps SECONDS (1 by default) instead of training and drawing; everything else of a trial
is as it always is: run folder, journal, checkpoints with a picture, decisions of ASHA, delivery to
MLflow. Ideal are the same trials, as many epochs each, in Tune alone. Both count from before Ray
starts to after all is told. MLflow's page asks for 100 runs at a time.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import ray

TRIALS, SECONDS = 1000, 1.0
CORES, EPOCHS = 2, 3
SLEEP_S = "SWEEP_COST_SLEEP_S"


def sleep_instead() -> None:
    """Called in each of Ray's workers when it starts: the driver's loop and drawing sleep."""
    import torch
    from PIL import Image

    from gliotrail.segmentation import validation
    from gliotrail.segmentation.loop import SCORE, State
    from gliotrail.training import driver

    told_of_steps = ("step_s_median", "step_s_p95")

    def fit(model: Any, _: Any, plan: Any, judge: Any, report: Any, *more: Any) -> Any:
        kept = {f"kept.{name}": tensor for name, tensor in model.state_dict().items()}
        score = plan.learning_rate**0.1
        for step in range(1, plan.steps + 1):
            metrics = {"train/soft_dice_loss": 0.5}
            if step % plan.steps_per_epoch == 0:
                time.sleep(float(os.environ[SLEEP_S]))
                for name in ("learning_rate", "voxels_per_s", "data_wait_share", *told_of_steps):
                    metrics[f"train/{name}"] = 0.5
                metrics |= judge(model) | {SCORE: score * step / plan.steps}
            report(step, metrics, lambda step=step: State(step, kept, score, step))  # type: ignore[misc]
        return State(plan.steps, kept, score, plan.steps)

    def validate(
        _: Any, task: Any, cases: Any, regions: Any, *more: Any, watch: Any
    ) -> dict[str, float]:
        watch(regions[0], None)
        counts_and_loss = torch.ones(1, task.n_labels**2 + 1)
        return validation.means_of_rows(counts_and_loss, task)

    picture = _png(Image.effect_noise((600, 300), 50))
    driver.fit, driver.validate = fit, validate  # type: ignore[assignment]
    driver.draw_validation = lambda *_: picture


def _png(image: Any) -> bytes:
    import io

    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@contextmanager
def two_cores(hook: Callable[[], None] | None = None) -> Iterator[None]:
    """Ray as `cluster` starts it, on two cores; its workers call `hook` first."""
    from gliotrail.cluster import connection as cluster

    before = ray.init, cluster.cpus_here
    cluster.cpus_here = lambda: CORES
    if hook is not None:
        ray.init = partial(ray.init, runtime_env={"worker_process_setup_hook": hook})
    try:
        yield
    finally:
        ray.init, cluster.cpus_here = before


def ours(folder: Path, trials: int) -> tuple[float, list[int]]:
    """Seconds of the whole sweep, and the epochs that each of its trials saw."""
    from gliotrail.cluster.sweep import sweep
    from gliotrail.imaging.patch import patch
    from gliotrail.imaging.prepare import prepare
    from gliotrail.imaging.prepared import load_prepared
    from gliotrail.runs.journal import RunFolder
    from tests.support.crops import Crops
    from tests.support.scans import lay_out_crops

    crops = Crops(folder)
    space = {
        "learning_rate": {"loguniform": [1e-4, 1e-2]},
        "patch_size": {"choice": ["16x16x8", "16x16x16"]},
        "weight_decay": {"loguniform": [1e-6, 1e-3]},
    }
    params = crops.params(
        sweep__space=space, sweep__algorithm="random", sweep__trials=trials,
        sweep__scheduler="asha", sweep__epochs=EPOCHS,
    )  # fmt: skip
    prepare(params.prepare, lay_out_crops(crops.raw), crops.prepared, processes=1)
    for size in params.patch.sizes:
        patch(params.patch, load_prepared(crops.prepared), size, crops.patches)
    started = time.perf_counter()
    with two_cores(sleep_instead):
        sweep(params, crops.prepared, crops.patches, folder / "out")
    took_s = time.perf_counter() - started
    lines = (folder / "out/trials.csv").read_text().splitlines()[1:]
    runs = [RunFolder(folder / "runs" / line.split(",")[0]) for line in lines]
    return took_s, [len(run.history()) for run in runs]


def ideal(folder: Path, epochs: list[int], seconds: float) -> float:
    """Seconds of trials that sleep for so many epochs each, in Tune alone."""
    from ray import tune

    from gliotrail.cluster.connection import cluster

    def trial(config: dict[str, Any]) -> None:
        for epoch in range(1, config["epochs"] + 1):
            time.sleep(seconds)
            tune.report({"score": 0.5, "epoch": epoch})

    started = time.perf_counter()
    with two_cores(), cluster() as connected:
        connected()
        tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"epochs": tune.grid_search(epochs)},
            tune_config=tune.TuneConfig(max_concurrent_trials=CORES, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
        ).fit()
    return time.perf_counter() - started


def query(results: int) -> str:
    """How long MLflow takes to give so many of the sweep's children at once, median of 5."""
    from gliotrail.cluster.sweep import EXPERIMENT
    from gliotrail.tracking.client import client, experiment_id

    server = client()
    experiment = experiment_id(server, EXPERIMENT)
    (parent,) = server.search_runs([experiment], "tags.`gliotrail.kind` = 'sweep'")
    below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    took_s, ended = [], 0
    for _ in range(5):
        started, started_cpu = time.perf_counter(), time.process_time()
        found = server.search_runs([experiment], below, max_results=results)
        took_s.append((time.perf_counter() - started, time.process_time() - started_cpu))
        ended = sum(run.info.status in {"FINISHED", "KILLED"} for run in found)
    wall_s, cpu_s = map(median, zip(*took_s, strict=True))
    return f"MLflow's query for {ended} of them that ended: {wall_s:.2f} s, {cpu_s:.2f} of a core's"


def main(trials: int, seconds: float) -> None:
    """One sweep, then the same trials without it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"GLIOTRAIL_STATE": name, SLEEP_S: str(seconds)}
        took_s, epochs = ours(folder, trials)
        print(f"{trials} trials, {sum(epochs)} epochs of {seconds:g} s: {took_s:.1f} s", flush=True)
        for results in (100, trials):
            print(query(results), flush=True)
        ideal_s = ideal(folder, epochs, seconds)
        sleeping_s = sum(epochs) * seconds / CORES
        print(
            f"Tune alone: {ideal_s:.1f} s, {took_s / ideal_s - 1:+.1%}; asleep {sleeping_s:.1f} s"
        )


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS,
        float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS,
    )
