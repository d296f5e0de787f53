"""Why early stopping is our own: Ray Tune's scheduler forgets its rungs when a sweep goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.starts_ray]

SWEEP = """
import os, sys, time
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

def trial(config):
    for epoch in range(1, 10):
        time.sleep(0.15)
        tune.report({"dice": config["quality"] * (1 - 0.5 ** epoch), "epoch": epoch})

store, name = sys.argv[1:]
ray.init(  # "local": never a cluster that somebody else has started here
    "local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
)
scheduler = ASHAScheduler(
    metric="dice", mode="max", time_attr="epoch", max_t=9, grace_period=1, reduction_factor=3
)
if os.path.exists(f"{store}/{name}/tuner.pkl"):
    tuner = tune.Tuner.restore(f"{store}/{name}", trainable=trial, restart_errored=True)
else:
    tuner = tune.Tuner(
        trial,
        param_space={
            "quality": tune.grid_search([0.5, 0.9, 0.6, 0.8, 0.3, 0.7, 0.4, 0.85, 0.2])
        },
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1),
        run_config=tune.RunConfig(name=name, storage_path=store, verbose=0),
    )
results = tuner.fit()
print("ended:", sorted(r.config["quality"] for r in results if r.metrics["epoch"] == 9))
"""


def ended(store: Path, name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, store, name],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return next(line for line in done.stdout.splitlines() if line.startswith("ended:"))


def test_a_sweep_that_was_killed_stops_fewer_trials_by_ray_s_own_asha(tmp_path: Path) -> None:
    undisturbed = ended(tmp_path, "undisturbed")
    assert undisturbed == "ended: [0.5, 0.8, 0.85, 0.9]"

    killed = subprocess.Popen(
        [sys.executable, "-c", SWEEP, tmp_path, "killed"],
        # Tune's state is written often, so that it knows the trials that are over, however slow
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "TUNE_GLOBAL_CHECKPOINT_S": "0.1"},
    )
    until = time.monotonic() + 240
    while len([*(tmp_path / "killed").glob("trial_*")]) < 6:
        assert time.monotonic() < until
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert "0.7" in ended(tmp_path, "killed")  # judged as if the trials before had never been
