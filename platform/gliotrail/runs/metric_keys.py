"""Which metrics tell of time and machines, not of what is learnt: no two runs have the same."""

from typing import Final

SYSTEM: Final = "system/"
"""What MLflow's page of system metrics shows."""
OF_TIME: Final = (
    "train/voxels_per_s",
    "train/data_wait_share",
    "train/step_s_median",
    "train/step_s_p95",
    "train/peak_gpu_gb",
    "train/mfu",
)


def is_of_machines(key: str) -> bool:
    """Whether a metric is one of those."""
    return key in OF_TIME or key.startswith(SYSTEM)
