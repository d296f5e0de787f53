"""The page that a new user types from, typed in an empty folder."""

import signal
import subprocess
from pathlib import Path

from tests.support.documents import blocks
from tests.support.projects import ROOT
from tests.tracking.test_delivery_thread import until
from tests.tracking.test_track import Loop, status, steps_by_key, until_checkpoint

PAGE = "docs/how-to/track-your-own-loop.md"


def losses(loop: Loop) -> dict[int, float]:
    return {step: value for _, step, value, _ in loop.recorded()[0].points}


def test_what_the_page_says_survives_kill_9_and_goes_on(tmp_path: Path) -> None:
    script, start, look, *_ = (b.text for b in blocks((ROOT / PAGE).read_text(), PAGE))
    assert start.split() == ["python", "digits.py"]
    loop, whole = Loop(tmp_path / "empty", script), Loop(tmp_path / "whole", script)
    process = loop.start()
    until_checkpoint(loop)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: status(loop) == "KILLED", 120)

    shown, again, _ = look.splitlines()
    assert again == start.strip()
    for words in (shown, f"gliotrail trace {loop.folders()[0].root.name}"):
        done = subprocess.run(
            words.split(), cwd=loop.folder, env=loop.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "KILLED" in done.stdout

    assert loop.run()[0] == whole.run()[0] == 0
    assert status(loop) == "FINISHED"
    assert steps_by_key(loop.recorded()[0]) == {"train/loss": list(range(1, 301))}
    assert losses(loop) == losses(whole)  # bit by bit what an unbroken one has
    assert losses(loop)[300] < 0.4
