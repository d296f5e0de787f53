"""Gliotrail: distributed experiment tracking for brain-tumour segmentation in 3-D MRI."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gliotrail.runs.tracked_run import TrackedRun as TrackedRun
    from gliotrail.tracking.track import track as track

__version__ = "0.1.0"
__all__ = ["TrackedRun", "__version__", "track"]


def __getattr__(name: str) -> Any:
    """The public interface, imported when it is asked for."""
    if name == "track":
        from gliotrail.tracking.track import track

        return track
    if name == "TrackedRun":
        from gliotrail.runs.tracked_run import TrackedRun

        return TrackedRun
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
