"""What a terminal shows of a run while it goes on: read from the run's own journal."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gliotrail.progress import progress, say
from gliotrail.segmentation.loop import SCORE
from gliotrail.tracking.journal import Point, RunFolder, read_points


@contextmanager
def watching(run: RunFolder, steps: int, what: str, every_s: float = 0.5) -> Iterator[None]:
    """Show steps as they are taken, and a line for each validation."""
    done = threading.Event()
    with progress(steps, what, "steps") as advance:

        def follow() -> None:
            shown = 0
            told: set[int] = set()
            while True:
                last = done.wait(every_s)
                points = live_points(run)
                step = max((point.step for point in points), default=0)
                if step > shown:
                    advance(step - shown)
                    shown = step
                for point in points:
                    if point.key == SCORE and point.step not in told:
                        told.add(point.step)
                        say(describe(points, point.step, steps))
                if last:
                    return

        thread = threading.Thread(target=follow, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(10)


def live_points(run: RunFolder) -> list[Point]:
    """The newest attempt's points so far."""
    journals = sorted((run.root / "attempts").glob("*.jsonl"))
    return read_points(Path(journals[-1])) if journals else []


def describe(points: list[Point], step: int, steps: int) -> str:
    """One line about a validation."""
    at = {point.key: point.value for point in points if point.step == step}
    dice = " ".join(f"{name} {at.get(f'val/dice_{name}', 0):.3f}" for name in ("WT", "TC", "ET"))
    loss = at.get("val/soft_dice_loss", float("nan"))
    mean = f"mean {at[SCORE]:.3f}, soft Dice loss {loss:.3f}"
    return f"step {step}/{steps}: validation Dice {dice}, {mean}"
