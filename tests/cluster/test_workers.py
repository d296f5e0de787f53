"""What becomes of what a worker raises. Ray Train calls its function in this process: 0 workers."""

import shutil
from pathlib import Path

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from gliotrail.cluster.connection import Resources
from gliotrail.cluster.fixed_scaling import Fixed
from gliotrail.cluster.workers import fit_on_workers
from gliotrail.errors import TrainingError
from gliotrail.runs.journal import TRACEBACK_FILE, RunFolder
from tests.support.crops import Crops
from tests.support.scans import edit_json


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_workers_own_traceback_is_kept(crops: Crops, tmp_path: Path, ray_cluster: None) -> None:
    there, run = Crops(tmp_path / "crops"), RunFolder(tmp_path / "run")
    shutil.copytree(crops.root, there.root)
    case = there.prepared / "cases/BRATS_009/case.json"
    edit_json(case, lambda values: values.update(std_C=[1e-300] * 4))  # patches are infinite
    with pytest.raises(TrainingError, match="loss at step 1") as caught:
        fit_on_workers(there.training(), run, Resources(0, 1, 0))
    run.end("FAILED", str(caught.value), error=caught.value)
    kept = (run.root / TRACEBACK_FILE).read_text()
    assert "in run_training" in kept
    assert kept.endswith(f"TrainingError: {caught.value}\n")


def test_a_fixed_number_of_workers_is_decided_without_an_autoscaler() -> None:
    policy = Fixed(ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}))
    policy.after_controller_start(None)  # would start the process that asks
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision == ResizeDecision(2, {"CPU": 1})
    policy.before_controller_abort()
