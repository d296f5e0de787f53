"""The sweep of a user of Ray Tune's, who tracks it: four learning rates on scikit-learn's digits.

python -m tests.integrations.ray_tune_digits STORAGE
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from sklearn.datasets import load_digits

from gliotrail.integrations.ray_tune import tracked_sweep

EPOCHS = 6


def learn(config: dict[str, Any]) -> None:
    """One trial, with a checkpoint an epoch."""
    pixels, digits = load_digits(return_X_y=True)
    pixels = pixels / 16
    weights, start = np.zeros((64, 10)), 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            weights = np.load(Path(folder) / "weights.npy")
            start = int((Path(folder) / "epoch.txt").read_text())
    for epoch in range(start + 1, EPOCHS + 1):
        odds = np.exp(pixels @ weights)
        chances = odds / odds.sum(1, keepdims=True)
        weights -= config["rate"] * pixels.T @ (chances - np.eye(10)[digits]) / len(digits)
        right = float((chances.argmax(1) == digits).mean())
        time.sleep(0.2)
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "weights.npy", weights)
            (Path(folder) / "epoch.txt").write_text(str(epoch))
            made = tune.Checkpoint.from_directory(folder)
            tune.report({"epoch": epoch, "accuracy": right}, checkpoint=made)


def sweep(storage: str) -> int:
    """As a user writes it: begun, or restored."""
    with tracked_sweep("rates", inputs={"epochs": EPOCHS}, step="epoch") as callback:
        if tune.Tuner.can_restore(f"{storage}/rates"):
            tuner = tune.Tuner.restore(f"{storage}/rates", trainable=learn)
        else:
            tuner = tune.Tuner(
                tune.with_resources(learn, {"cpu": 1}),
                param_space={"rate": tune.grid_search([0.1, 0.5, 1.0, 2.0])},
                tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
                run_config=tune.RunConfig(
                    name="rates", storage_path=storage, verbose=0, callbacks=[callback]
                ),
            )
        return len(tuner.fit())


def main(storage: str) -> None:
    """What the user's script does."""
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0.5"
    ray.init(
        "local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    print("trials", sweep(storage), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
