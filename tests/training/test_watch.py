import time
from pathlib import Path

import pytest

from gliotrail.runs.journal import RunFolder
from gliotrail.runs.writer import Writer
from gliotrail.training.watch import describe, watching

VALIDATION = {
    "val/soft_dice_loss": 0.31,
    "val/dice_WT": 0.8,
    "val/dice_TC": 0.6,
    "val/dice_mean_regions": 0.7,
}


def test_steps_and_validations_are_told_while_a_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, seen = RunFolder(tmp_path), ""
    with watching(run, 4, "train", every_s=0.02):
        time.sleep(0.1)  # nothing is there yet
        for steps in ((1, 2), (2, 3, 4)):  # the second attempt takes a step again
            writer = Writer(run)
            for step in steps:
                writer.write(
                    step, {"train/soft_dice_loss": 0.5} | (VALIDATION if step % 2 == 0 else {})
                )
                time.sleep(0.06)
            seen += capsys.readouterr().err
    assert seen.splitlines() == [
        "step 2/4: validation Dice WT 0.800 TC 0.600, mean 0.700, soft Dice loss 0.310",
        "step 4/4: validation Dice WT 0.800 TC 0.600, mean 0.700, soft Dice loss 0.310",
    ]
    assert capsys.readouterr().err.startswith("train: 4/4 steps, ")


def test_a_half_written_line_is_read_once_it_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    Writer(run).write(1, VALIDATION)
    journal = tmp_path / "attempts/0001.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content[:-30])
    with watching(run, 1, "train", every_s=0.02):
        time.sleep(0.1)
        journal.write_bytes(content)
        time.sleep(0.1)
    assert capsys.readouterr().err.startswith("train: 1/1 steps, ")


def test_a_block_that_fails_is_watched_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), watching(RunFolder(tmp_path), 4, "train"):
        raise ZeroDivisionError


def test_a_validation_is_one_line() -> None:
    assert describe(VALIDATION) == (
        "validation Dice WT 0.800 TC 0.600, mean 0.700, soft Dice loss 0.310"
    )
    steps = {"voxels_per_s": 512_345.6, "data_wait_share": 0.0123, "step_s_median": 0.2041,
             "step_s_p95": 0.2567}  # fmt: skip
    of_steps = {f"train/{name}": value for name, value in steps.items()}
    assert describe(VALIDATION | of_steps) == (
        "validation Dice WT 0.800 TC 0.600, mean 0.700, soft Dice loss 0.310; 512,346 voxels/s;"
        " 1.2% waiting for data; step 0.204 s, 95th percentile 0.257 s"
    )
    of_gpu = {"train/peak_gpu_gb": 12.34, "train/mfu": 0.312}
    told = describe(VALIDATION | of_steps | of_gpu)
    assert told.endswith("GPU memory 12.3 GB; 31% of the GPU's peak")
