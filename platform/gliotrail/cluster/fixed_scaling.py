"""A scaling policy for a Ray of this process's own, which has no autoscaler to ask for machines.

In a file that imports little: Ray Train's controller reads it when it starts.
"""

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class Fixed(FixedScalingPolicy):
    """As many workers as wanted, without the process that would ask: its start takes seconds."""

    def after_controller_start(self, train_run_context: object) -> None:
        """Nobody to ask."""

    def _maybe_send_resource_request(self) -> None:
        """Nobody to ask."""
