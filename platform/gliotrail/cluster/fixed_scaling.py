"""A scaling policy for Ray on this machine, without an autoscaler to ask for machines.

In a file with few imports: Ray Train's controller imports it when it starts.
"""

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class Fixed(FixedScalingPolicy):
    """A fixed number of workers, without the process that asks for machines: it starts slowly."""

    def after_controller_start(self, train_run_context: object) -> None:
        """Nobody to ask."""

    def _maybe_send_resource_request(self) -> None:
        """Nobody to ask."""
