"""Which trials are stopped early: no Ray, no training."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail.params import Sweep
from gliotrail.runs.journal import RunFolder
from gliotrail.search.halving import Halving
from gliotrail.search.outcome import figures
from gliotrail.search.proposals import Trial
from tests.support.tracked_runs import begun, go_on

NO_TRAINING: Any = None


def sweep_of(scheduler: str, epochs: int, reduction: int = 3) -> Sweep:
    return Sweep.model_validate({
        "space": {"batch_size": {"choice": [1]}}, "algorithm": "grid", "trials": 1, "seed": 1,
        "epoch_voxels": 1, "keep": "all", "epochs": epochs,
        "scheduler": scheduler, "reduction": reduction,
    })  # fmt: skip


def trial(number: int) -> Trial:
    return Trial(number, {}, NO_TRAINING, RunFolder(Path("runs") / f"t{number}"))


@pytest.mark.parametrize(
    ("epochs", "reduction", "rungs"),
    [(1, 3, []), (2, 3, [1]), (3, 3, [1]), (4, 3, [1, 3]), (27, 3, [1, 3, 9]), (5, 2, [1, 2, 4])],
)  # fmt: skip
def test_rungs_are_epochs_each_so_many_times_the_one_before(
    epochs: int, reduction: int, rungs: list[int], tmp_path: Path
) -> None:
    log = tmp_path / "log.csv"
    assert Halving(sweep_of("asha", epochs, reduction), log).rungs(5) == (0, rungs)
    assert Halving(sweep_of("fifo", epochs, reduction), log).rungs(5) == (0, [])


def test_hyperband_has_the_brackets_of_its_paper(tmp_path: Path) -> None:
    # R = 9, eta = 3: 9 trials from 1 epoch on, 5 from 3, 3 that are never stopped
    halving = Halving(sweep_of("hyperband", 9), tmp_path / "log.csv")
    brackets = [halving.rungs(number) for number in range(34)]
    assert brackets[:17] == [(0, [1, 3])] * 9 + [(1, [3])] * 5 + [(2, [])] * 3
    assert brackets[17:] == brackets[:17]


def test_brackets_are_compared_within_themselves(tmp_path: Path) -> None:
    halving = Halving(sweep_of("hyperband", 9), tmp_path / "log.csv")
    assert halving.goes_on(trial(0), 3, 0.9)
    assert halving.goes_on(trial(9), 3, 0.1)  # the first of its bracket
    assert not halving.goes_on(trial(1), 3, 0.2)
    assert not halving.goes_on(trial(10), 3, 0.05)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(2, 4))
def test_a_trial_goes_on_if_it_is_among_the_best_so_far(
    values: list[float], reduction: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gliotrail.search.halving.write_durably", lambda *args: None)
        halving = Halving(sweep_of("asha", 4, reduction), Path("nowhere"))
        for n, value in enumerate(values):
            so_far = sorted(values[: n + 1], reverse=True)
            wanted = value >= so_far[max(1, (n + 1) // reduction) - 1]
            assert halving.goes_on(trial(n), 1, value) == wanted
            assert (halving.stopped(trial(n)) is None) == wanted
    assert Counter(d.decision for d in halving.decisions)["goes on"] >= 1
    assert [d.order for d in halving.decisions] == list(range(1, len(values) + 1))


def test_a_decision_stands_and_is_remembered(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    halving = Halving(sweep_of("asha", 4), log)
    said = [halving.goes_on(trial(n), 1, value) for n, value in enumerate([0.5, 0.7, 0.6])]
    assert said == [True, True, False]
    assert halving.goes_on(trial(0), 2, 0.0)  # no rung
    for again in (halving, Halving(sweep_of("asha", 4), log)):
        assert [again.goes_on(trial(n), 1, 0.9 - n) for n in range(3)] == said
        assert [again.stopped(trial(n)) is not None for n in range(3)] == [False, False, True]
        assert again.table() == log.read_bytes()
    assert list(csv.DictReader(log.read_text().splitlines()))[2] == {
        "order": "3", "trial": "t2", "bracket": "0", "rung": "1", "value": "0.6",
        "decision": "stopped",
    }  # fmt: skip
    assert not Halving(sweep_of("asha", 4), log).goes_on(trial(3), 1, 0.65)


def test_a_sweeps_own_run_has_its_winners_dice_and_the_best_of_each_rung(tmp_path: Path) -> None:
    halving, trials = Halving(sweep_of("asha", 4), tmp_path / "log.csv"), []
    for number, value in enumerate([0.5, 0.7]):
        trials.append(Trial(number, {}, NO_TRAINING, begun(tmp_path / f"t{number}")))
        go_on(trials[-1].run, [1, 2 + number])
        halving.goes_on(trials[-1], 1, value)
    told = figures({"trial": "t1"}, trials, halving)
    assert told == {"sweep/winner_dice_WT": 0.003, "sweep/best_dice_at_epoch_1": 0.7}
