import csv
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from gliotrail.cluster.sweep import EXPERIMENT, sweep
from gliotrail.cluster.train import choose
from gliotrail.errors import GliotrailError, ParamsError, Stopped
from gliotrail.imaging.prepared import load_prepared
from gliotrail.params import Params
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.owner import Owner, owner_of, this_process
from gliotrail.runs.stop import note
from gliotrail.search.proposals import Proposals, Trial
from gliotrail.segmentation.loop import World
from gliotrail.tracking.client import client, experiment_id
from gliotrail.training.driver import run_training
from tests.support.crops import Crops, a_worker_killed, try_here
from tests.support.environment import in_state

SIZES = ["16x16x8", "16x16x16"]


@dataclass(frozen=True)
class Swept:
    """A sweep: where its state was, and its outputs."""

    state: Path
    out: Path
    params: Params

    def table(self) -> list[dict[str, str]]:
        with (self.out / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    def best(self) -> dict[str, Any]:
        return json.loads((self.out / "best.json").read_text())

    def attempts(self) -> dict[str, int]:
        """How often each trial was begun, by its folder's name."""
        folders = self.state.glob("runs/*/attempts")
        return {path.parent.name: len(list(path.iterdir())) for path in folders}


@pytest.fixture(scope="module")
def without_test_patients(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """The crops, without the arrays and raw scans of the held-out patient."""
    there = Crops(tmp_path_factory.mktemp("without") / "crops")
    shutil.copytree(crops.root, there.root)
    shutil.rmtree(there.raw)
    for path in (there.prepared / "cases/BRATS_119").glob("*.npy"):
        path.unlink()
    return there


@pytest.fixture(scope="module")
def swept(ray_cluster: None, without_test_patients: Crops, new_state: Callable[[], Path]) -> Swept:
    """Two learning rates by one patch size; then another size added, one trial's worker killed.

    Shared: change nothing.
    """
    there, state = without_test_patients, new_state()
    one_size = there.params(sweep__space__patch_size__choice=SIZES[:1])
    with pytest.MonkeyPatch.context() as patched:
        try_here(patched)
        sweep(one_size, there.prepared, there.patches, state / "first")
    done = Swept(state, state / "second", there.params(sweep__space__patch_size__choice=SIZES))
    before = set((state / "runs").glob("*/checkpoints/*/manifest.json"))
    with a_worker_killed(state, "ImplicitFunc", before) as killed:
        sweep(done.params, there.prepared, there.patches, done.out)
    assert len(killed) == 1
    return done


def children(server: MlflowClient, parent: Run) -> list[Run]:
    found = server.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    return sorted(found, key=lambda run: str(run.info.run_name))


def test_the_winner_is_the_best_by_validation(swept: Swept) -> None:
    rows = swept.table()
    grid = [(row["learning_rate"], row["patch_size"]) for row in rows]
    assert grid == [(rate, size) for rate in ("0.001", "0.01") for size in SIZES]
    assert {row["status"] for row in rows} == {"FINISHED"}
    best = max(rows, key=lambda row: float(row["score"]))
    assert swept.best() == {
        "params": {
            "learning_rate": float(best["learning_rate"]),
            "patch_size": best["patch_size"],
        },
        "score": float(best["score"]),
        "trial": best["trial"],
    }
    for row in rows:
        points = RunFolder(swept.state / "runs" / row["trial"]).points()
        last = [p.value for p in points if p.key == "val/dice_mean_regions"][-1]
        assert last == float(row["score"])
        assert not any(p.key.startswith("val_synthetic/") for p in points)  # decides nothing here


def test_a_sweep_never_reads_a_test_patient(swept: Swept, without_test_patients: Crops) -> None:
    case = without_test_patients.prepared / "cases/BRATS_119"
    assert [path.name for path in case.iterdir()] == ["case.json"]
    assert load_prepared(without_test_patients.prepared).split.test == ("BRATS_119",)
    assert {row["status"] for row in swept.table()} == {"FINISHED"}


def test_a_budget_is_voxels_whatever_the_patch_size(swept: Swept) -> None:
    steps = {row["patch_size"]: int(row["steps"]) for row in swept.table()}
    assert steps == {"16x16x8": 16, "16x16x16": 8}
    assert {int(row["voxels"]) for row in swept.table()} == {2 * 4 * 4 * 16**3}


def test_train_takes_the_winner_where_its_params_say_so(swept: Swept, crops: Crops) -> None:
    best = swept.best()["params"]
    both = crops.params(train__learning_rate="from_sweep", train__patch_size="from_sweep")
    section = choose(both, swept.out / "best.json").model_dump(mode="json")
    assert {key: section[key] for key in best} == best
    one = crops.params(train__learning_rate="from_sweep", train__patch_size="16x16x8")
    section = choose(one, swept.out / "best.json").model_dump(mode="json")
    assert (section["learning_rate"], section["patch_size"]) == (best["learning_rate"], "16x16x8")
    none = crops.params()
    assert choose(none, Path("nowhere")) == none.train


def test_trials_lie_below_their_sweep_in_mlflow(
    swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(swept.state, monkeypatch)
    server = client()
    found = server.search_runs(
        [experiment_id(server, EXPERIMENT)], "tags.`gliotrail.kind` = 'sweep'"
    )
    first, second = sorted(found, key=lambda run: run.info.start_time)
    names = [[str(run.info.run_name) for run in children(server, of)] for of in (first, second)]
    assert names == [
        ["lr=1.0e-02 patch=16x16x8", "lr=1.0e-03 patch=16x16x8"],
        ["lr=1.0e-02 patch=16x16x16", "lr=1.0e-03 patch=16x16x16"],
    ]
    assert str(second.info.run_name) == "sweep of learning_rate x patch_size, 4 trials"
    for parent in (first, second):
        assert parent.info.status == "FINISHED"
        for run in children(server, parent):
            assert run.info.status == "FINISHED"
            steps = int(run.data.params["steps"])
            history = server.get_metric_history(run.info.run_id, "train/soft_dice_loss")
            assert [metric.step for metric in history] == list(range(1, steps + 1))


def test_the_sweeps_run_holds_tables_and_pictures_and_each_trials_cost(
    swept: Swept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_state(swept.state, monkeypatch)
    server = client()
    found = server.search_runs(
        [experiment_id(server, EXPERIMENT)], "tags.`gliotrail.kind` = 'sweep'"
    )
    parent = max(found, key=lambda run: run.info.start_time)
    held = {file.path for file in server.list_artifacts(parent.info.run_id)} - {"code"}
    pictures = {"parallel_coordinates.png", "learning_rate.png", "budget.png"}
    assert held == {"trials.csv", "decisions.csv", *pictures}
    for name in ("trials.csv", "decisions.csv"):
        path = server.download_artifacts(parent.info.run_id, name, str(tmp_path))
        assert Path(path).read_bytes() == (swept.out / name).read_bytes()
    for name in pictures:
        with Image.open(server.download_artifacts(parent.info.run_id, name, str(tmp_path))) as of:
            assert min(of.size) > 300
    for run in children(server, parent):
        assert run.data.metrics["trial/voxels"] == 2 * 4 * 4 * 16**3
        assert run.data.metrics["trial/seconds"] > 0
        # three measures over classes and regions, their means, and the loop's own
        assert len(run.data.metrics) < 50


def test_a_wider_space_uses_the_trials_that_were_finished(swept: Swept) -> None:
    assert sorted(swept.attempts().values()) == [1, 1, 1, 2]  # the killed one went on


def test_a_trial_whose_worker_was_killed_has_the_curve_of_one_that_was_not(
    swept: Swept, crops: Crops, tmp_path: Path
) -> None:
    (name,) = [name for name, attempts in swept.attempts().items() if attempts == 2]
    killed = RunFolder(swept.state / "runs" / name)
    trials = Proposals(swept.params, crops.prepared, crops.patches).trials
    (training,) = [trial.training for trial in trials if trial.name == name]
    whole = RunFolder(tmp_path / "whole")
    run_training(training, whole, World())
    curves = [[(p.key, p.step, p.value) for p in run.points() if "dice" in p.key]
              for run in (killed, whole)]  # fmt: skip
    assert curves[0] == curves[1]


def test_only_the_winner_keeps_its_checkpoints(swept: Swept) -> None:
    runs = {row["trial"]: RunFolder(swept.state / "runs" / row["trial"]) for row in swept.table()}
    assert {name for name, run in runs.items() if run.states()} == {swept.best()["trial"]}
    assert all(run.points() and run.history()[-1].pictures() for run in runs.values())


def test_whose_checkpoints_stay_makes_no_other_sweep(crops: Crops) -> None:
    sweeps = [
        Proposals(crops.params(sweep__keep=whose), crops.prepared, crops.patches)
        for whose in ("winner", "all")
    ]
    assert len({of.parent.root for of in sweeps}) == 1
    assert len({tuple(trial.name for trial in of.trials) for of in sweeps}) == 1


@pytest.mark.long
def test_a_trial_of_two_workers_has_the_curve_of_one_of_one(
    swept: Swept,
    without_test_patients: Crops,
    new_state: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, state = without_test_patients, new_state()
    monkeypatch.setenv("GLIOTRAIL_TRIAL_WORKERS", "2")
    params = there.params(
        sweep__space={
            "learning_rate": {"choice": [1e-3]}, "patch_size": {"choice": SIZES[1:]}
        },
        sweep__scheduler="asha", sweep__reduction=2,
    )  # fmt: skip
    sweep(params, there.prepared, there.patches, state / "out")
    (row,) = Swept(state, state / "out", params).table()
    (one,) = [of for of in swept.table() if of["trial"] == row["trial"]]
    assert row == one | {key: row[key] for key in ("score", "seconds") if key in row}
    curves = [
        {(p.key, p.step): p.value for p in RunFolder(of / "runs" / row["trial"]).points()
         if p.key.startswith("val/dice") or "loss" in p.key}
        for of in (state, swept.state)
    ]  # fmt: skip
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    (decision,) = csv.DictReader((state / "out/decisions.csv").read_text().splitlines())
    assert float(decision["value"]) == curves[0]["val/dice_mean_regions", 4]


def test_again_is_as_once(
    swept: Swept, without_test_patients: Crops, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(swept.state, monkeypatch)
    once = {path.name: path.read_bytes() for path in swept.out.iterdir()}
    attempts = swept.attempts()
    there = without_test_patients
    sweep(swept.params, there.prepared, there.patches, swept.out)
    assert {path.name: path.read_bytes() for path in swept.out.iterdir()} == once
    assert swept.attempts() == attempts


def test_a_finished_sweep_that_tries_a_failed_trial_again_is_held_and_can_be_stopped(
    swept: Swept, without_test_patients: Crops, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there, state = without_test_patients, tmp_path / "state"
    shutil.copytree(swept.state, state)
    in_state(state, monkeypatch)
    proposals = Proposals(swept.params, there.prepared, there.patches)
    failed, parent = proposals.trials[-1], proposals.parent
    failed.run.end("FAILED", "its machine broke")
    note(parent, "who asked long ago")
    seen: list[tuple[str, Owner | None]] = []

    def interrupted(waiting: Iterator[Trial | None], *_: object) -> None:
        trial = next(waiting)
        assert trial is not None
        seen.append((trial.name, owner_of(parent)))
        signal.raise_signal(signal.SIGINT)

    try_here(monkeypatch)
    monkeypatch.setattr("gliotrail.cluster.trials.run_trials", interrupted)
    with pytest.raises(Stopped, match="stopped by Ctrl-C") as stopped:
        sweep(swept.params, there.prepared, there.patches, tmp_path / "out")
    assert stopped.value.code == 130
    assert seen == [(failed.name, this_process())]
    assert (parent.ended() or {})["status"] == "KILLED"
    assert owner_of(parent) is None


# refused before any trial starts


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sweep__space__patch_size__choice": ["16x16x16", "32x32x16"]},
         "index.parquet: patch size 32x32x16: not prepared; add 32x32x16 to patch.sizes and run"),
        ({"sweep__space__patch_size__choice": ["16x16x16", "17x16x16"]},
         "patch size: wanted sides that are multiples of 2, as depth 2 asks: 16x16x16 or 18x16x16"),
        ({"sweep__space__patch_size__choice": ["16x16"]}, "sweep.space: train.patch_size: a patch"),
        ({"sweep__space__learning_rate__choice": [1e-3, "fast"]}, "train.learning_rate: a number"),
        ({"sweep__space__learning_rate__choice": ["from_sweep"]}, "rate: can't be from_sweep"),
        ({"sweep__space": {"patch_size": {"choice": SIZES}}, "train__learning_rate": "from_sweep"},
         "sweep.space.learning_rate: missing; give it one choice, or give train.learning_rate a"),
        ({"sweep__space": {
            "patch_size": {"choice": SIZES}, "learning_rate": {"choice": [1e-3]},
            "weigth_decay": {"choice": [0]}}},
         "train.weigth_decay: unknown key; did you mean weight_decay?"),
        ({"sweep__space": {
            "patch_size": {"choice": SIZES}, "learning_rate": {"choice": [1e-3]},
            "epochs": {"choice": [1, 2]}}},
         "sweep.space.epochs: can't be swept; set sweep.epochs"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_is_refused_in_one_line(
    changes: dict[str, Any],
    told: str,
    crops: Crops,
    tmp_path: Path,
    new_state: Callable[[], Path],
    ray_cluster: None,
) -> None:
    state = new_state()
    patches = tmp_path / "patch"
    shutil.copytree(crops.patches, patches)
    shutil.copytree(patches / "16x16x16", patches / "17x16x16")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/best.json").write_text("the old one")
    with pytest.raises(GliotrailError) as error:
        sweep(crops.params(**changes), crops.prepared, patches, tmp_path / "sweep")
    assert told in str(error.value)
    assert not list(state.glob("runs/*/run.json"))
    assert (tmp_path / "sweep/best.json").read_text() == "the old one"


def test_any_param_of_train_can_be_swept(crops: Crops) -> None:
    space = {
        "learning_rate": {"choice": [1e-3]},
        "patch_size": {"choice": ["16x16x16"]},
        "batch_size": {"choice": [2, 4]},
        "loss": {"choice": ["soft_dice", "dice_ce"]},
    }
    trials = Proposals(crops.params(sweep__space=space), crops.prepared, crops.patches).trials
    sections = [trial.training.section for trial in trials]
    chosen = [(of.batch_size, of.loss, of.epochs) for of in sections]
    assert chosen == [(n, loss, 2) for n in (2, 4) for loss in ("soft_dice", "dice_ce")]
    assert len({trial.name for trial in trials}) == 4


def test_no_winner_is_told(crops: Crops, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="no winner of a sweep; run `dvc repro sweep`"):
        choose(crops.params(train__learning_rate="from_sweep"), tmp_path / "best.json")
    for spoilt in ("", "{}", '{"params": {}}'):
        (tmp_path / "best.json").write_text(spoilt)
        with pytest.raises(ParamsError, match=r"best.json: damaged: wanted a sweep's winner with"):
            choose(crops.params(train__learning_rate="from_sweep"), tmp_path / "best.json")
