import csv
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from gliotrail.cluster.train import train
from gliotrail.errors import Stopped
from gliotrail.params import Params
from gliotrail.runs.journal import MODEL_FILE, RunFolder, parse_lines
from gliotrail.runs.metric_keys import is_of_machines
from gliotrail.segmentation import weights
from gliotrail.segmentation.loop import World
from gliotrail.tracking.client import client, existing_run
from gliotrail.training.driver import result, run_training
from gliotrail.training.inputs import Training
from tests.support.brain import CHANNELS, CLASSES
from tests.support.crops import Crops, a_worker_killed, interrupt, once, train_here
from tests.support.environment import in_state
from tests.support.scans import snapshot
from tests.support.told import told

STEPS, STEPS_PER_EPOCH = 16, 4
LOSS = "train/soft_dice_loss"


@dataclass(frozen=True)
class Trained:
    """A training by real workers: where its state was, and its outputs."""

    state: Path
    out: Path
    params: Params

    @property
    def run(self) -> RunFolder:
        """Its folder; the only one there is."""
        (path,) = self.state.glob("runs/*/run.json")
        return RunFolder(path.parent)

    @property
    def losses(self) -> dict[int, float]:
        return {p.step: p.value for p in self.run.points() if p.key == LOSS}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return weights.read(self.out / MODEL_FILE)[0]


def trained(crops: Crops, state: Path, workers: int) -> Trained:
    done = Trained(state, state / "results/train", crops.params(train__epochs=4))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GLIOTRAIL_WORKERS", str(workers))
        train(done.params, crops.prepared, crops.patches, state / "sweep", done.out)
    return done


@pytest.fixture(scope="module")
def by_two(ray_cluster: None, crops: Crops, new_state: Callable[[], Path]) -> Trained:
    """Trained by two workers, of which one was killed; then stopped by Ctrl-C, and gone on with.

    Shared: change nothing.
    """
    state = new_state()
    with (
        a_worker_killed(state, "RayTrainWorker") as killed,
        once(state, "attempts/0002.jsonl", interrupt),
        pytest.raises(
            Stopped,
            match="stopped by Ctrl-C; what was trained is kept, and the same command goes on",
        ),
    ):
        trained(crops, state, workers=2)
    assert len(killed) == 1
    with pytest.MonkeyPatch.context() as patched:
        train_here(patched, by_two_threads)
        return trained(crops, state, workers=2)


def by_two_threads(training: Training, run: RunFolder) -> None:
    both, handed = threading.Barrier(2), [torch.empty(0)] * 2

    def work(rank: int) -> None:
        run_training(training, run, World(rank, 2, partial(add, rank)), judge_start=True)

    def add(rank: int, tensor: torch.Tensor) -> None:
        handed[rank] = tensor.clone()
        both.wait(60)
        tensor.copy_(handed[0] + handed[1])
        both.wait(60)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))


@pytest.fixture(scope="module")
def undisturbed(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same training by two threads of this process, to its end."""
    run = RunFolder(tmp_path_factory.mktemp("threads"))
    by_two_threads(crops.training(train__epochs=4), run)
    return run


def test_out_come_model_journal_and_curves(by_two: Trained) -> None:
    _, description = weights.load(by_two.out / MODEL_FILE)
    assert (description.channels, description.classes) == (CHANNELS, CLASSES)
    says = json.loads((by_two.out / "run.json").read_text())
    assert says == by_two.run.describe() | {"ended": by_two.run.ended()}
    points = parse_lines((by_two.out / "journal.jsonl").read_bytes())
    assert points == by_two.run.points()
    assert max(Counter((p.key, p.step) for p in points).values()) == 1

    with (by_two.out / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [float(row["soft_dice_loss"]) for row in rows] == list(by_two.losses.values())
    smoothed = [float(row["soft_dice_loss_smoothed"]) for row in rows]
    assert smoothed == list(by_two.losses.values())  # a twentieth of 16 steps: each by itself
    with (by_two.out / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 4, 8, 12, 16]
    assert float(rows[-1]["dice_mean_regions"]) == says["ended"]["summary"]["score"]
    assert says["ended"]["summary"]["step"] == STEPS


def test_mlflow_has_the_whole_run(by_two: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    in_state(by_two.state, monkeypatch)
    server, says = client(), by_two.run.describe()
    of = told(server, existing_run(server, "gliotrail", says["id"]).info.run_id)
    assert of["points"] == sorted((p.key, p.step, p.value, p.time_ms) for p in by_two.run.points())
    assert of["status"] == "FINISHED"
    assert [status for _, status, _ in of["models"]] == ["READY"]
    assert of["params"]["model.depth"] == "2"
    assert of["params"]["learning_rate"] == "0.003"
    assert of["params"]["patch_size"] == "16x16x16"
    assert of["params"]["parameters_other"] == "0"
    assert {"network.png", "network.txt"} < set(of["files"])
    pictures = [name for name in of["files"] if name.endswith(".png") and "+step+" in name]
    assert (
        [f"+step+{step}+" in name for step in (0, 4, 8, 12, 16) for name in pictures].count(True)
        == len(pictures)
        == 1 + STEPS // STEPS_PER_EPOCH
    )


def test_the_metric_keys_are_few_and_named_alike(by_two: Trained) -> None:
    keys = {point.key for point in by_two.run.points()}
    assert {key for key in keys if key.startswith("train/")} == {
        LOSS, "train/learning_rate", "train/voxels_per_s", "train/data_wait_share",
        "train/step_s_median", "train/step_s_p95",
    }  # fmt: skip
    of_classes = {f"val/{m}_{c}" for m in ("dice", "sensitivity", "specificity") for c in CLASSES}
    of_regions = {f"val/dice_{region}" for region in ("WT", "TC", "ET")}
    means = {"val/dice_mean_classes", "val/dice_mean_regions", "val/soft_dice_loss"}
    val = of_classes | of_regions | means
    assert {key for key in keys if key.startswith("val/")} <= val
    synthetic = {key for key in keys if key.startswith("val_synthetic/")}
    assert {key.replace("val_synthetic/", "val/") for key in synthetic} <= val
    system = {key for key in keys if key.startswith("system/")}  # of one machine, so no node's
    assert len(system) == 8
    assert len(keys - synthetic - system) <= 21


def test_the_same_inputs_are_not_trained_on_again(
    by_two: Trained, crops: Crops, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(by_two.state, monkeypatch)
    server, says = client(), by_two.run.describe()
    run_id = existing_run(server, "gliotrail", says["id"]).info.run_id
    once, outputs = told(server, run_id), snapshot(by_two.out)
    for path in by_two.out.iterdir():
        path.unlink()
    monkeypatch.setenv("GLIOTRAIL_WORKERS", "99")  # never asked for
    train(by_two.params, crops.prepared, crops.patches, by_two.state, by_two.out)
    assert snapshot(by_two.out) == outputs
    assert len(list(by_two.run.root.glob("attempts/*.jsonl"))) == 3
    assert told(server, run_id) == once


def test_a_killed_worker_and_ctrl_c_change_nothing(
    by_two: Trained, crops: Crops, undisturbed: RunFolder
) -> None:
    assert len(list(by_two.run.root.glob("attempts/*.jsonl"))) == 3
    curves = [[(p.key, p.step, p.value) for p in run.points() if not is_of_machines(p.key)]
              for run in (by_two.run, undisturbed)]  # fmt: skip
    assert curves[0] == curves[1]  # no gap, no double, and bit for bit the same
    model = result(crops.training(train__epochs=4), undisturbed)[1]
    assert (by_two.out / MODEL_FILE).read_bytes() == model


@pytest.mark.usefixtures("in_this_process")
def test_one_worker_takes_the_same_steps(
    by_two: Trained, crops: Crops, new_state: Callable[[], Path]
) -> None:
    by_one = trained(crops, new_state(), workers=1)
    assert list(by_one.losses) == list(by_two.losses)
    ten = range(1, 11)  # float32 itself diverges later
    assert [by_one.losses[n] for n in ten] == pytest.approx(
        [by_two.losses[n] for n in ten], rel=1e-4
    )
    for name, tensor in by_one.weights.items():
        torch.testing.assert_close(tensor, by_two.weights[name], rtol=1e-2, atol=1e-4)
    assert by_one.run.describe()["tags"]["gliotrail.inputs"] == by_one.run.root.name
    assert by_one.run.root.name == by_two.run.root.name
