"""What is shown of a sweep: no Ray, no training; trials' folders are written as trainings do."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gliotrail.params import Params
from gliotrail.runs.writer import Writer
from gliotrail.search.halving import Halving
from gliotrail.search.live_table import Board, watching_sweep
from gliotrail.search.proposals import Proposals, Trial
from gliotrail.segmentation.loop import SCORE
from tests.support.crops import Crops
from tests.support.environment import in_state

EPOCHS, STEPS_PER_EPOCH, VOXELS_PER_EPOCH = 3, 4, 4 * 4 * 16**3


@pytest.fixture
def params(crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Four trials of three epochs; at epochs 1 and 2 the worse half is stopped."""
    in_state(tmp_path, monkeypatch)
    space = {
        "learning_rate": {"choice": [1e-4, 1e-3, 3e-3, 1e-2]},
        "patch_size": {"choice": ["16x16x16"]},
    }
    return crops.params(sweep__space=space, sweep__scheduler="asha", sweep__reduction=2,
                        sweep__epochs=EPOCHS)  # fmt: skip


@pytest.fixture
def proposals(params: Params, crops: Crops) -> Proposals:
    return Proposals(params, crops.prepared, crops.patches)


@pytest.fixture
def halving(params: Params, tmp_path: Path) -> Halving:
    return Halving(params.sweep, tmp_path / "decisions.csv")


def go_on(trial: Trial, epoch: int, score: float) -> None:
    """Another attempt, of one epoch."""
    trial.run.begin({"id": trial.name})
    writer = Writer(trial.run)
    for step in range((epoch - 1) * STEPS_PER_EPOCH + 1, epoch * STEPS_PER_EPOCH + 1):
        of_epoch: Mapping[str, Any] = {SCORE: score} if step % STEPS_PER_EPOCH == 0 else {}
        writer.write(step, {"train/soft_dice_loss": 0.5, **of_epoch})
    writer.checkpoint(epoch * STEPS_PER_EPOCH, b"state")
    writer.close()


def shown(board: Board, height: int = 40) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=110).print(board.table(height))
    return file.getvalue().splitlines()


def test_a_log_has_a_line_for_each_decision_and_each_end(
    proposals: Proposals, halving: Halving
) -> None:
    board = Board(proposals, halving)
    first, second, third, _ = proposals.trials
    assert board.look() == []
    for trial, score in ((first, 0.5), (second, 0.25)):
        go_on(trial, 1, score)
        halving.goes_on(trial, 1, score)
    assert board.look() == [
        "lr=1.0e-04 patch=16x16x16: epoch 1 of 3, validation Dice 0.500: goes on"
    ]
    stopped = halving.stopped(second)
    assert stopped is not None
    second.run.end("KILLED", halving.reason(stopped))
    first.run.end("FINISHED", "trained to its budget", {"score": 0.5})
    third.run.begin({"id": third.name})
    third.run.end("FAILED", "the loss is no finite number")
    told = board.look()
    assert [line.partition("; ")[0] for line in told] == [
        "lr=1.0e-04 patch=16x16x16: finished, validation Dice 0.500",
        "lr=1.0e-03 patch=16x16x16: stopped early by asha after epoch 1 of 3: validation Dice "
        "0.250 is not among the best 1 in 2",
        "lr=3.0e-03 patch=16x16x16: FAILED: the loss is no finite number",
    ]
    assert "; 3/4 trials, 0.131 of 0.786 million voxels (17%), ETA " in told[-1]
    assert board.look() == []


def test_what_was_there_before_is_counted_and_not_told(
    proposals: Proposals, halving: Halving
) -> None:
    first, second, third, _ = proposals.trials
    go_on(first, 1, 0.5)
    first.run.end("FINISHED", "trained to its budget", {"score": 0.5})
    go_on(second, 1, 0.4)  # killed outright
    go_on(third, 1, 0.3)
    third.run.end("FAILED", "a cable", time_ms=1)  # goes on
    board = Board(proposals, halving)
    assert board.look() == []
    assert board.state() == "1/4 trials, 0.197 of 0.786 million voxels (25%)"
    assert [row.split("│")[2].strip() for row in shown(board) if "lr=" in row] == [
        "finished", "waits", "waits",
    ]  # fmt: skip
    third.run.reopen()
    go_on(third, 2, 0.6)
    board.look()
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in shown(board) if "lr=" in row]
    assert rows[0] == ["lr=3.0e-03 patch=16x16x16", "runs", "2/3", "0.600", "0.1"]
    assert "ETA" in board.state()


def test_a_table_shows_as_many_as_fit_the_best_on_top_and_whatever_runs(
    crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halving: Halving
) -> None:
    in_state(tmp_path, monkeypatch)
    rates = [n * 1e-5 for n in range(1, 41)]
    space = {"learning_rate": {"choice": rates}, "patch_size": {"choice": ["16x16x16"]}}
    proposals = Proposals(crops.params(sweep__space=space), crops.prepared, crops.patches)
    for trial in proposals.trials[:30]:
        go_on(trial, 1, 0.3 + trial.number / 100)
        if trial.number:
            trial.run.end("FINISHED", "trained", {"score": 0.3})
    board = Board(proposals, halving)
    go_on(proposals.trials[0], 2, 0.01)
    board.look()
    for height in (12, 24):
        lines = shown(board, height)
        assert len(lines) < height
        rows = [line for line in lines if "lr=" in line]
        assert "lr=3.0e-04" in rows[0]
        assert "0.590" in rows[0]
        assert "runs" in rows[-1]
        assert f"{40 - len(rows)} trials not shown" in lines[-1]
    assert len([line for line in shown(board, 100) if "lr=" in line]) == 30


def test_lines_are_written_while_the_block_runs_and_after_one_that_fails(
    proposals: Proposals, halving: Halving, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = proposals.trials[0]
    with pytest.raises(ZeroDivisionError), watching_sweep(proposals, halving, every_s=0.02):
        go_on(trial, 3, 0.5)
        trial.run.end("FINISHED", "trained to its budget", {"score": 0.5})
        raise ZeroDivisionError
    assert capsys.readouterr().err.startswith(
        "sweep: lr=1.0e-04 patch=16x16x16: finished, validation Dice 0.500; 1/4 trials, "
    )
