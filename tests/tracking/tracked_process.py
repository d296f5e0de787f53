"""A training's tracking without the training, in a process of its own: to be killed at any moment.

Each step's number is known beforehand, so that what survives can be compared. A checkpoint comes
with every fifth step. It goes on where an earlier one was killed, and ends early, at a
checkpoint, when there is a file `enough` in the folder; it stops at the next step when asked to.
"""

import time
from pathlib import Path

from gliotrail.errors import one_line_errors
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import Origin, describe
from gliotrail.runs.stop import asked_by, stop_if_asked
from gliotrail.runs.writer import Writer
from gliotrail.tracking.delivery_thread import tracked

KEY = "train/soft_dice_loss"


def value(step: int) -> float:
    """What is noted at a step."""
    return 1 / step


def work(run: RunFolder, pause_s: float, steps: int) -> None:
    """From the last checkpoint on."""
    if not run.has_begun():
        says = describe(
            Origin({}, {}), experiment="tests", kind="train", name="to be killed",
            params={}, inputs=str(run.root), data=[],
        )  # fmt: skip
        run.begin(says)
    run.reopen()
    writer = Writer(run)
    history = run.history()
    step = history[-1].step if history else 0
    print("step", step, flush=True)
    while step < steps:
        step += 1
        writer.write(step, {KEY: value(step)})
        asked = asked_by(run)
        if step % 5 == 0 or asked:
            writer.checkpoint(step, b"state %d" % step)
            if (run.root / "enough").exists():
                break
        stop_if_asked(run)
        time.sleep(pause_s)
    run.end("FINISHED", "trained to the end", {"step": step})


def main(root: Path, pause_s: float, steps: int) -> None:
    """All that the process does."""
    run = RunFolder(root)
    with one_line_errors(), tracked(run):
        work(run, pause_s, steps)
