"""The terminal's view of a running run, read from its own journal."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gliotrail.progress import meanwhile, progress, say
from gliotrail.runs.journal import Point, RunFolder, parse_lines
from gliotrail.segmentation.loop import SCORE


@contextmanager
def watching(run: RunFolder, steps: int, what: str, every_s: float = 0.5) -> Iterator[None]:
    """Show steps as they are taken, and a line for each validation."""
    shown, journal = -1, Journal()
    with progress(steps, what, "steps") as advance:

        def look() -> None:
            nonlocal shown
            by_step: dict[int, dict[str, float]] = {}
            for point in journal.news(run):
                by_step.setdefault(point.step, {})[point.key] = point.value
            for step, values in by_step.items():
                if step > shown:  # a new attempt may repeat some steps
                    advance(step - max(shown, 0))
                    shown = step
                    if SCORE in values:
                        say(f"step {step}/{steps}: {describe(values)}")

        with meanwhile(look, every_s):
            yield


def follow(run: RunFolder, every_s: float = 0.5) -> Iterator[str]:
    """A line for each step that is taken, as it is taken; then how the run ended."""
    journal = Journal()
    while True:
        ended = run.ended()  # read before its last points, so that these are shown
        by_step: dict[int, dict[str, float]] = {}
        for point in journal.news(run):
            by_step.setdefault(point.step, {})[point.key] = point.value
        for step, values in by_step.items():
            losses = [f"{k.removeprefix('train/')} {v:.4f}" for k, v in values.items()
                      if k.startswith("train/") and k.endswith("_loss")]  # fmt: skip
            yield f"step {step}: {', '.join(losses)}" if losses else f"step {step}"
            if SCORE in values:
                yield f"step {step}: {describe(values)}"
        if ended is not None:
            yield f"{ended['status']}: {ended['reason']}"
            return
        time.sleep(every_s)


class Journal:
    """Reads the newest attempt's journal as it grows."""

    def __init__(self) -> None:
        self._path, self._read_bytes = Path(), 0

    def news(self, run: RunFolder) -> list[Point]:
        """The points since the last call."""
        newest = max((run.root / "attempts").glob("*.jsonl"), default=None)
        if newest is None:
            return []
        if newest != self._path:
            self._path, self._read_bytes = newest, 0
        with newest.open("rb") as file:
            file.seek(self._read_bytes)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be half written
        self._read_bytes += len(whole)
        return parse_lines(whole)


def describe(values: Mapping[str, float]) -> str:
    """An epoch's scores and speed in one line."""
    subjects = [
        key.removeprefix("val/dice_")
        for key in values
        if key.startswith("val/dice_") and not key.startswith("val/dice_mean_")
    ]
    regions = [name for name in subjects if f"val/specificity_{name}" not in values]
    dice = [f"{name} {values[f'val/dice_{name}']:.3f}" for name in regions or subjects]
    mean, loss = values[SCORE], values["val/soft_dice_loss"]
    found = f"validation Dice {' '.join(dice)}, mean {mean:.3f}, soft Dice loss {loss:.3f}"
    return "; ".join([found, *_speed(values)])


def _speed(values: Mapping[str, float]) -> Iterator[str]:
    """The speed of the epoch's steps; empty if there were none, as for the first weights."""
    if "train/voxels_per_s" not in values:
        return
    yield f"{values['train/voxels_per_s']:,.0f} voxels/s"
    yield f"{values['train/data_wait_share']:.1%} waiting for data"
    median_s, p95_s = values["train/step_s_median"], values["train/step_s_p95"]
    yield f"step {median_s:.3g} s, 95th percentile {p95_s:.3g} s"
    if "train/peak_gpu_gb" in values:
        yield f"GPU memory {values['train/peak_gpu_gb']:.1f} GB"
    if "train/mfu" in values:
        yield f"{values['train/mfu']:.0%} of the GPU's peak"
