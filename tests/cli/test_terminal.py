"""Commands as a terminal runs them: followed as they print, and left by Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gliotrail.runs.journal import RunFolder
from gliotrail.runs.writer import Writer
from tests.support.projects import ROOT
from tests.support.scans import DEMO
from tests.support.tracked_runs import begun

VALIDATION = {"val/dice_WT": 0.8, "val/dice_mean_regions": 0.7, "val/soft_dice_loss": 0.31}


def started(state: Path, *words: object) -> "subprocess.Popen[str]":
    """`gliotrail WORDS`, with Ctrl-C as a terminal's child has it."""
    code = "from gliotrail.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"GLIOTRAIL_STATE": str(state)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return begun(tmp_path / "runs/abc")


def test_watch_tells_each_step_as_it_is_taken_and_how_the_run_ended(
    run: RunFolder, tmp_path: Path
) -> None:
    with started(tmp_path, "runs", "watch", "abc") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "abc: train of tests\n"
        writer, latest_s = Writer(run), 0.0
        for step in (1, 2):
            writer.write(step, {"train/soft_dice_loss": step / 10})
            began_s = time.monotonic()
            assert watch.stdout.readline() == f"step {step}: soft_dice_loss {step / 10:.4f}\n"
            latest_s = max(latest_s, time.monotonic() - began_s)
        assert latest_s < 10  # half a second on a quiet machine
        writer.write(0, VALIDATION)
        assert watch.stdout.readline() == "step 0\n"
        told = "step 0: validation Dice WT 0.800, mean 0.700, soft Dice loss 0.310\n"
        assert watch.stdout.readline() == told
        run.end("FINISHED", "trained to the end")
        assert watch.stdout.readline() == "FINISHED: trained to the end\n"
        assert watch.wait(20) == 0


def test_ctrl_c_leaves_watch_and_the_run_goes_on(run: RunFolder, tmp_path: Path) -> None:
    with started(tmp_path, "runs", "watch", "abc") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "abc: train of tests\n"
        watch.send_signal(signal.SIGINT)
        out, err = watch.communicate(timeout=20)
        assert (watch.returncode, out, err) == (0, "no longer watched; the run goes on\n", "")
    assert run.ended() is None


def test_ctrl_c_during_segment_is_one_line_and_leaves_no_half_mask(tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    words = [DEMO / "imagesTr/BRATS_119.nii.gz", "-o", mask]
    weights = ROOT / "results/weights/brats-dynunet.safetensors"
    with started(tmp_path, "segment", *words, "--model", weights) as segment:
        maps = Path(f"/proc/{segment.pid}/maps")
        while "libtorch_cpu" not in maps.read_text():
            assert segment.poll() is None
            time.sleep(0.05)
        time.sleep(2)  # within what takes longer
        segment.send_signal(signal.SIGINT)
        _, err = segment.communicate(timeout=60)
    told = "error: stopped by Ctrl-C; nothing is half written; run the same command again\n"
    assert (segment.returncode, err[err.find("error") :]) == (130, told)
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*mask*"))
