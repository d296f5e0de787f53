"""Population-based training: who takes over from whom without Ray, and a small sweep with it."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from gliotrail.cluster.sweep import sweep
from gliotrail.errors import ParamsError
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.writer import Writer
from gliotrail.search.population import GOES_ON, TAKES_OVER, Population
from gliotrail.search.proposals import Proposals
from gliotrail.segmentation.loop import SCORE, World
from gliotrail.training.driver import run_training
from tests.support.crops import Crops

RATES, SHIFTS = (1e-4, 3e-2), [0.0, 0.1, 0.2, 0.3]
PBT: dict[str, Any] = {
    "sweep__algorithm": "pbt",
    "sweep__trials": 3,
    "sweep__scheduler": "fifo",
    "sweep__space": {
        "learning_rate": {"loguniform": list(RATES)},
        "patch_size": {"choice": ["16x16x16"]},
        "augment.intensity_shift": {"choice": SHIFTS},
    },
}


@pytest.fixture
def proposals(crops: Crops, new_state: Callable[[], Path]) -> Proposals:
    """A population of nine, in an empty place."""
    new_state()
    params = crops.params(**PBT | {"sweep__trials": 9, "sweep__epochs": 3})
    return Proposals(params, crops.prepared, crops.patches)


def train(run: RunFolder, step: int, score: float) -> None:
    """What an epoch's training leaves."""
    writer = Writer(run)
    writer.write(step, {SCORE: score})
    writer.checkpoint(step, f"{run.root.name} at {step}".encode())
    writer.close()


def states(run: RunFolder) -> list[tuple[int, bytes]]:
    history = run.history()
    return [(c.step, c.state()) for c in history if (c.folder / "state.safetensors").is_file()]


def test_the_worst_third_takes_over_the_state_and_nearby_values_of_the_best(
    proposals: Proposals, tmp_path: Path
) -> None:
    population, members = Population(proposals, tmp_path / "log.csv"), proposals.trials
    for trial in members:
        train(trial.run, 4, trial.number / 10)
    population.decide(1)
    names = [trial.name for trial in members]
    assert [made.order for made in population.decisions] == list(range(1, 10))
    assert [made.decision for made in population.decisions] == [TAKES_OVER] * 3 + [GOES_ON] * 6
    for made, trial in zip(population.decisions, members, strict=True):
        assert (made.trial, made.epoch, made.value) == (trial.name, 1, trial.number / 10)
        assert made.before == trial.point == population.member(trial, 1).point
        now = population.member(trial, 2)
        assert now.point == made.after
        assert now.training.learning_rate == made.after["learning_rate"]
        assert now.run.root == trial.run.root
        own = f"{trial.name} at 4".encode()
        if made.decision == GOES_ON:
            assert (made.source, made.after) == ("", made.before)
            assert states(trial.run) == [(4, own)]
            continue
        assert made.source in names[6:]
        assert states(trial.run) == [(4, own), (4, f"{made.source} at 4".encode())]
        taken = next(of.point for of in members if of.name == made.source)
        assert RATES[0] <= made.after["learning_rate"] <= RATES[1]
        assert made.after["augment.intensity_shift"] in SHIFTS
        assert made.after["patch_size"] == "16x16x16"
        assert made.after != taken


def test_a_value_is_a_fifth_away_or_a_neighbour_or_drawn_anew(
    proposals: Proposals, tmp_path: Path
) -> None:
    population, members = Population(proposals, tmp_path / "log.csv"), proposals.trials
    near = {"rate": 0, "shift": 0, "of": 0}
    for epoch in range(1, 9):
        for trial in members:
            train(trial.run, 4 * epoch, trial.number / 10)
        before = {of.name: population.member(of, epoch).point for of in members}
        population.decide(epoch)
        for made in population.decisions[-9:]:
            if made.source:
                taken, after = before[made.source], made.after
                factor = after["learning_rate"] / taken["learning_rate"]
                steps = [SHIFTS.index(p["augment.intensity_shift"]) for p in (taken, after)]
                near["rate"] += any(math.isclose(factor, of) for of in (0.8, 1.2))
                near["shift"] += abs(steps[0] - steps[1]) == 1
                near["of"] += 1
    assert near["of"] == 3 * 8
    assert 0.6 < near["rate"] / near["of"] < 0.9
    assert 0.6 < near["shift"] / near["of"] < 1


def test_decisions_stand_and_are_carried_out_once_also_after_a_kill_between(
    proposals: Proposals, tmp_path: Path
) -> None:
    log, members = tmp_path / "log.csv", proposals.trials
    for trial in members:
        train(trial.run, 4, trial.number / 10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gliotrail.search.population._take_over", lambda *_: None)
        Population(proposals, log).decide(1)
    written = log.read_bytes()
    for _ in range(2):
        again = Population(proposals, log)
        again.decide(1)
        assert again.table() == log.read_bytes() == written
        assert [len(trial.run.history()) for trial in members] == [2] * 3 + [1] * 6
    assert Population(proposals, tmp_path / "other.csv").decisions == []


def test_nothing_is_decided_before_all_came_to_the_epochs_end_and_a_failed_one_is_left_out(
    proposals: Proposals, tmp_path: Path
) -> None:
    population = Population(proposals, tmp_path / "log.csv")
    parts = population.parts()
    first = [next(parts) for _ in range(9)]
    assert [(of.name, of.until) for of in first if of] == [(t.name, 1) for t in proposals.trials]
    for trial in proposals.trials:
        assert next(parts) is None
        assert population.decisions == []
        if trial.number:
            train(trial.run, 4, trial.number / 10)
        population.came_back(trial)
    with pytest.raises(StopIteration):  # the first one was stopped, as all are: another time
        next(parts)
    assert population.decisions == []
    proposals.trials[0].run.end("FAILED", "its loss is no number")
    parts = population.parts()
    assert next(parts) is not None
    population.came_back(proposals.trials[0])
    second = [next(parts) for _ in range(8)]
    assert [(of.name, of.until) for of in second if of] == [
        (trial.name, 2) for trial in proposals.trials[1:]
    ]
    assert Counter(made.decision for made in population.decisions) == {GOES_ON: 6, TAKES_OVER: 2}


def test_what_cannot_change_in_mid_training_is_refused(crops: Crops) -> None:
    space = PBT["sweep__space"]
    for key, choice, told in (
        ("patch_size", {"choice": ["16x16x8", "16x16x16"]},
         "patch_size: pbt can't change it in mid-training; give it one choice, or take another"),
        ("model.depth", {"choice": [1, 2]}, "sweep.space.model.depth: pbt can't change it"),
        ("learning_rate", {"grid": [1e-3, 1e-2]}, "learning_rate: pbt chooses by itself; write"),
    ):  # fmt: skip
        params = crops.params(**PBT | {"sweep__space": space | {key: choice}})
        with pytest.raises(ParamsError, match=told):
            Proposals(params, crops.prepared, crops.patches)
    params = crops.params(**PBT | {"sweep__scheduler": "asha"})
    with pytest.raises(
        ParamsError, match="scheduler: wanted fifo, as algorithm pbt stops no trial"
    ):
        Proposals(params, crops.prepared, crops.patches)


@pytest.mark.long
def test_a_sweep_of_a_population_ends_as_one_that_was_killed_again_and_again(
    ray_cluster: None, crops: Crops, new_state: Callable[[], Path]
) -> None:
    state, params = new_state(), crops.params(**PBT, sweep__epoch_voxels=2 * 4 * 16**3)
    sweep(params, crops.prepared, crops.patches, state / "out")
    rows = list(csv.DictReader((state / "out/trials.csv").read_text().splitlines()))
    decisions = list(csv.DictReader((state / "out/decisions.csv").read_text().splitlines()))
    runs = {row["trial"]: RunFolder(state / "runs" / row["trial"]) for row in rows}
    for row in rows:  # one point a step, over the whole budget
        steps = [p.step for p in runs[row["trial"]].points() if p.key == "train/soft_dice_loss"]
        assert steps == [1, 2, 3, 4]
        assert (row["status"], int(row["steps"])) == ("FINISHED", 4)
    (taken,) = [row for row in decisions if row["source"]]
    assert taken["decision"] == TAKES_OVER
    assert float(taken["value"]) == min(float(row["value"]) for row in decisions)
    at = [[c.sha256["state.safetensors"] for c in runs[taken[of]].history() if c.step == 2]
          for of in ("trial", "source")]  # fmt: skip
    assert at[0][1] == at[1][-1] != at[0][0]
    ended = runs[taken["trial"]].ended()
    assert ended is not None
    assert f"took over {taken['source']} after epoch 1" in ended["reason"]
    (now,) = [row for row in rows if row["trial"] == taken["trial"]]
    assert float(now["learning_rate"]) == json.loads(taken["after"])["learning_rate"]
    best = json.loads((state / "out/best.json").read_text())
    assert best["schedule"][-1]["params"] == best["params"]
    assert best["schedule"][0]["epoch"] == 1

    new_state()
    again = Proposals(params, crops.prepared, crops.patches)
    log = again.parent.root / "population.csv"
    for parts_before_it_is_killed in (2, 1, 9):
        population = Population(again, log)
        for part in islice(population.parts(), parts_before_it_is_killed):
            if part:
                run_training(part.training, part.run, World(), until=part.until)
                population.came_back(part)
    assert population.table() == (state / "out/decisions.csv").read_bytes()
    for trial in again.trials:
        curves = [{(p.key, p.step): p.value for p in run.points() if p.key.startswith("val")}
                  for run in (trial.run, runs[trial.name])]  # fmt: skip
        assert curves[0] == curves[1]
