import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gliotrail.errors import GliotrailError, ParamsError, TrackingError, TrainingError
from gliotrail.runs import stop
from gliotrail.runs.journal import RunFolder, resume_tags
from gliotrail.runs.metric_keys import is_of_machines
from gliotrail.runs.writer import Writer
from gliotrail.segmentation.loop import State, World
from gliotrail.training import driver
from gliotrail.training.driver import plan_of, result, run_training
from gliotrail.training.inputs import Training
from gliotrail.training.preflight import check
from gliotrail.training.state_file import from_bytes, to_bytes
from tests.support.crops import Crops

STEPS = 8


@pytest.fixture(scope="module")
def training(crops: Crops) -> Training:
    return crops.training(train__epochs=2)


@pytest.fixture(scope="module")
def whole(training: Training, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A training from start to end. Shared: change nothing."""
    run = RunFolder(tmp_path_factory.mktemp("whole"))
    run_training(training, run, World())
    return run


class StoppedError(Exception):
    """Somebody pulled the plug."""


def stop_after(steps: int) -> World:
    """A world that ends with the sum after so many steps."""
    left = steps

    def sum_in_place(tensor: torch.Tensor) -> None:
        nonlocal left
        if tensor.dim() == 1:  # gradients and loss
            left -= 1
        if left < 0:
            raise StoppedError

    return World(sum_in_place=sum_in_place)


def curves(run: RunFolder) -> list[tuple[str, int, float]]:
    return [(p.key, p.step, p.value) for p in run.points() if not is_of_machines(p.key)]


def test_a_training_writes_its_journal_checkpoints_and_pictures(
    whole: RunFolder, training: Training
) -> None:
    assert [c.step for c in whole.history()] == [4, STEPS]
    assert [[p.name for p in c.pictures()] for c in whole.history()] == [["validation.png"]] * 2
    losses = [p.step for p in whole.points() if p.key == "train/soft_dice_loss"]
    assert losses == list(range(1, STEPS + 1))
    state, model = result(training, whole)
    assert (state.step, state.kept_step) == (STEPS, STEPS)
    assert len(model) > 1000


@pytest.mark.parametrize(("steps", "every_s"), [(2, 60.0), (6, 60.0), (4, 0.0), (6, 0.0)])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(
    steps: int, every_s: float, training: Training, whole: RunFolder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(driver, "CHECKPOINT_EVERY_S", every_s)  # 0: after each step
    run = RunFolder(tmp_path)
    with pytest.raises(StoppedError):
        run_training(training, run, stop_after(steps))
    final = [c.step for c in run.history()]
    assert final == (list(range(1, steps + 1)) if every_s == 0 else [4][: steps // 4])
    with pytest.raises(TrainingError, match=rf"stopped early: got {max(final, default=0)} of 8"):
        result(training, run)
    run_training(training, run, World())
    assert curves(run) == curves(whole)
    assert result(training, run)[1] == result(training, whole)[1]


def test_asked_to_stop_it_makes_a_checkpoint_and_goes_on_as_if_it_had_not(
    training: Training, whole: RunFolder, tmp_path: Path
) -> None:
    run, steps = RunFolder(tmp_path), 0

    def ask_in_the_second_step(tensor: torch.Tensor) -> None:
        nonlocal steps
        steps += tensor.dim() == 1  # gradients and loss
        if steps == 2:
            stop.ask(run, "a test")

    assert run_training(training, run, World(sum_in_place=ask_in_the_second_step)).step == 3
    assert [c.step for c in run.history()] == [3]
    stop.forget(run)
    run_training(training, run, World())
    assert curves(run) == curves(whole)
    assert result(training, run)[1] == result(training, whole)[1]


def test_without_its_states_it_begins_anew_and_no_point_comes_twice(
    training: Training, whole: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(StoppedError):
        run_training(training, run, stop_after(5))
    before = run.points()
    run.drop_states()
    assert driver.restore(run) is None
    assert run_training(training, run, World()).step == STEPS
    assert run.points()[: len(before)] == before
    assert curves(run) == curves(whole)
    assert result(training, run)[1] == result(training, whole)[1]


def test_what_the_bits_depend_on_is_kept_and_what_changed_is_told(
    training: Training, whole: RunFolder, tmp_path: Path
) -> None:
    run, threads = RunFolder(tmp_path), torch.get_num_threads()
    with pytest.raises(StoppedError):
        run_training(training, run, stop_after(5))
    try:
        torch.set_num_threads(threads + 1)
        run_training(training, run, World())
    finally:
        torch.set_num_threads(threads)
    tags = {
        "resume.exact": "false",
        "resume.changed": f"threads {threads}, from step 4 on {threads + 1}",
    }
    assert resume_tags(run.history()) == tags
    assert [(key, step) for key, step, _ in curves(run)] == [
        (key, step) for key, step, _ in curves(whole)
    ]
    assert resume_tags(whole.history()) == {}
    assert whole.history()[0].made_on["torch"] == torch.__version__


def test_a_training_at_its_end_takes_no_further_step(
    training: Training, whole: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(Path(shutil.copytree(whole.root, tmp_path / "run")))
    state = run_training(training, run, stop_after(0))
    assert state.step == STEPS
    assert run.points() == whole.points()


def test_each_epochs_end_is_told(training: Training, tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    run = RunFolder(tmp_path)
    run_training(training, run, World(), told.append)
    key = "val/dice_mean_regions"
    scores = [point.value for point in run.points() if point.key == key]
    assert told == [{"epoch": n, key: score} for n, score in enumerate(scores, 1)]
    assert len(told) == 2


def test_a_worker_that_is_not_the_first_writes_nothing(training: Training, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run_training(training, RunFolder(tmp_path), World(1, 2, stop_after(2).sum_in_place))
    assert list(tmp_path.iterdir()) == []


def test_a_training_whose_run_was_taken_by_another_stops(
    training: Training, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(TrackingError, match="attempt 1 is over: attempt 2 has taken the run"):
        run_training(training, run, World(), lambda _: Writer(run).close())
    assert [c.step for c in run.history()] == [4]


def test_a_damaged_checkpoint_is_told(training: Training, whole: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(whole.root, tmp_path / "run")))
    path = run.history()[-1].folder / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(TrackingError, match=r"state\.safetensors: sha256: wanted .*; remove "):
        run_training(training, run, World())


def test_a_state_comes_back_from_its_bytes(whole: RunFolder) -> None:
    content = whole.history()[-1].state()
    state = from_bytes(content)
    assert to_bytes(state) == content
    assert from_bytes(to_bytes(State(3, {"last.a": torch.ones(2)}))).kept_score == -float("inf")


# refused before anything starts


def without_validation(crops: Crops, folder: Path) -> Crops:
    shutil.copytree(crops.root, folder / "crops")
    there = Crops(folder / "crops")
    split = json.loads((there.prepared / "split.json").read_text())
    (there.prepared / "split.json").write_text(json.dumps(split | {"validation": []}))
    return there


def test_what_cannot_be_trained_is_refused(crops: Crops, tmp_path: Path) -> None:
    there = without_validation(crops, tmp_path)
    refused: dict[str, GliotrailError] = {}
    for what, training in {
        "validation": there.training(train__keep="best"),
        "size": crops.training(train__patch_size="16x15x16", patch__sizes=["16x15x16"]),
    }.items():
        with pytest.raises(ParamsError) as told:
            check([crops.training(), training] if what == "size" else [training])
        refused[what] = told.value
    assert str(refused["validation"]) == (
        "train.keep: best: no validation data; name cases, a share or a block in "
        "prepare.split.validation, or take train.keep: last"
    )
    assert "16x14x16 or 16x16x16" in str(refused["size"])
    check([crops.training()])


def test_tf32_is_refused_where_there_is_none(crops: Crops, tmp_path: Path) -> None:
    training = crops.training(train__precision="tf32")
    with pytest.raises(ParamsError, match="tf32: wanted a GPU that computes with it, got"):
        run_training(training, RunFolder(tmp_path), World())


def test_bfloat16_is_refused_where_the_cpu_only_imitates_it(
    crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False})
    training = crops.training(train__precision="bfloat16")
    with pytest.raises(ParamsError, match="bfloat16: wanted a CPU that computes with it, got "):
        run_training(training, RunFolder(tmp_path), World())
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_is_as_many_voxels_for_every_patch_size(crops: Crops) -> None:
    plans = [plan_of(crops.training(train__patch_size=size)) for size in ("16x16x8", "16x16x16")]
    assert [plan.steps_per_epoch for plan in plans] == [8, 4]


@pytest.mark.parametrize("steps", [2, 6])
def test_step_0_is_what_the_first_weights_can_do_and_changes_nothing_else(
    steps: int, training: Training, whole: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(StoppedError):
        run_training(training, run, stop_after(steps), judge_start=True)
    assert [c.step for c in run.history()] == [0, 4][: 1 + steps // 4]
    run_training(training, run, World(), judge_start=True)
    assert [c.step for c in run.history()] == [0, 4, STEPS]
    assert [p.name for p in run.history()[0].pictures()] == ["validation.png"]
    first = {p.key for p in run.points() if p.step == 0}
    assert {"val/dice_mean_regions", "val/soft_dice_loss"} <= first
    assert not [key for key in first if key.startswith("train/")]
    assert [point for point in curves(run) if point[1]] == curves(whole)
    assert result(training, run)[1] == result(training, whole)[1]  # bit for bit


def test_without_validation_data_checkpoints_still_come_at_each_epochs_end(
    crops: Crops, tmp_path: Path
) -> None:
    training = without_validation(crops, tmp_path).training(
        train__rehearsal=0, train__epochs=2, train__epoch_voxels=2 * 4 * 16**3
    )
    told: list[dict[str, float]] = []
    check([training])
    run = RunFolder(tmp_path / "run")
    state = run_training(training, run, World(), told.append)
    assert [checkpoint.step for checkpoint in run.history()][-2:] == [2, 4]
    assert told == [{"epoch": 1}, {"epoch": 2}]
    assert not [point for point in run.points() if point.key.startswith("val/")]
    assert state.kept_step == 4
    assert np.isnan(state.kept_score)
    kept, averaged = state.weights("kept"), state.weights("averaged")
    assert all(torch.equal(kept[name], averaged[name]) for name in kept)
