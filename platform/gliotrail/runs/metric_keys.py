"""Metrics of time and machines, not of learning: they differ between equal runs."""

from typing import Final

SYSTEM: Final = "system/"
"""The prefix of metrics on MLflow's page of system metrics."""
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
