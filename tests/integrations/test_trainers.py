"""Lightning's Trainer and Hugging Face's on scikit-learn's digits, tracked: whole, and killed."""

import re
import signal
from pathlib import Path

import pytest

from tests.integrations.scripts import checkpoints, start, statuses, to_its_end, values
from tests.tracking.test_delivery_thread import until

OF_TIME = re.compile("runtime|per_second|flos")


@pytest.mark.long
@pytest.mark.needs_trainers
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("module", "loss", "steps"),
    [
        ("lightning_digits", "train/loss_step", range(24)),
        ("hugging_face_digits", "loss", range(1, 25)),
    ],
)
def test_killed_it_goes_on_to_the_same_numbers_once(
    module: str, loss: str, steps: range, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(module, killed)
    until(lambda: checkpoints(killed), 600)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: statuses(killed / "state") == ["KILLED"], 300)
    printed = [to_its_end(start(module, folder), folder) for folder in (killed, whole)]

    for folder in (killed, whole):
        until(lambda of=folder: statuses(of / "state") == ["FINISHED"], 120)
    weights = [text.splitlines()[-1] for text in printed]
    assert weights[0] == weights[1] != "weights None"
    found, wanted = values(killed / "state"), values(whole / "state")
    assert all(len(each) == 1 for each in found.values())
    assert [step for key, step in sorted(found) if key == loss] == list(steps)
    of_loop = [key for key in wanted if not OF_TIME.search(key[0])]
    assert {key: found.get(key) for key in of_loop} == {key: wanted[key] for key in of_loop}

    again = to_its_end(start(module, killed), killed)
    assert again.splitlines()[-1] == "weights None"  # nothing to do
