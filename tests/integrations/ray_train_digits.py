"""The loop of a user of Ray Train's, who tracks it: two workers learn scikit-learn's digits.

python -m tests.integrations.ray_train_digits STORAGE [KILL_WORKER_AT]
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from sklearn.datasets import load_digits

from gliotrail.integrations import ray_train

STEPS = 12


def learn(config: dict[str, Any]) -> None:
    """Each worker its share, with a checkpoint every other step."""
    rank = ray.train.get_context().get_world_rank()
    pixels, digits = load_digits(return_X_y=True)
    pixels, digits = pixels[rank::2] / 16, digits[rank::2]
    weights, start = np.zeros((64, 10)), 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            weights = np.load(Path(folder) / "weights.npy")
            start = int((Path(folder) / "step.txt").read_text())
    for step in range(start + 1, STEPS + 1):
        odds = np.exp(pixels @ weights)
        chances = odds / odds.sum(1, keepdims=True)
        loss = -np.log(chances[range(len(digits)), digits]).mean()
        weights -= 0.5 * pixels.T @ (chances - np.eye(10)[digits]) / len(digits)
        time.sleep(0.1)
        once = Path(config["storage"]) / "worker_killed"
        if step == config["kill_at"] and rank == 1 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        metrics = {"step": step, "train": {"loss": loss}, "note": "no number"}
        with tempfile.TemporaryDirectory() as folder:
            made = None
            if step % 2 == 0:
                np.save(Path(folder) / "weights.npy", weights)
                (Path(folder) / "step.txt").write_text(str(step))
                made = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
            ray.train.report(metrics, checkpoint=made)


def trainer(storage: str, kill_at: int = 0) -> DataParallelTrainer:
    """As a user makes it, without a name."""
    return DataParallelTrainer(
        learn,
        train_loop_config={"storage": storage, "kill_at": kill_at},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            storage_path=storage, failure_config=ray.train.FailureConfig(max_failures=2)
        ),
    )


def main(storage: str, kill_at: str = "0") -> None:
    """What the user's script does."""
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    made = trainer(storage, int(kill_at))
    result = ray_train.fit(made, "digits on ray", inputs={"steps": STEPS}, all_ranks=True)
    print("result", (result.metrics or {})["step"], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
