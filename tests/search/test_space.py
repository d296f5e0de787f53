"""What a sweep tries: no Ray, no training."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliotrail.errors import ParamsError
from gliotrail.params import Params, validate
from gliotrail.plain_yaml import read_yaml
from gliotrail.search.proposals import Proposals
from gliotrail.search.space import Space, name_of
from gliotrail.search.tpe import Tpe
from tests.support.crops import Crops
from tests.support.projects import ROOT

VALUES = read_yaml(ROOT / "params.yaml")
RATE = {"learning_rate": {"loguniform": [1e-4, 1e-1]}}


def params_of(**sweep: Any) -> Params:
    return validate(VALUES | {"sweep": VALUES["sweep"] | sweep})


def space_of(**sweep: Any) -> Space:
    return Space(params_of(**sweep))


def random_space(seed: int = 7, trials: int = 5, **space: Any) -> Space:
    return space_of(algorithm="random", seed=seed, trials=trials, space=RATE | space)


def test_random_points_follow_from_the_seed_and_more_start_with_fewer() -> None:
    batch = {"uniform": [2, 8]}
    points = random_space(batch_size=batch).points()
    assert random_space(batch_size=batch).points() == points
    assert random_space(batch_size=batch, trials=9).points()[:5] == points
    other = random_space(seed=8, batch_size=batch).points()
    assert not {name_of(p) for p in other} & {name_of(p) for p in points}


def test_random_values_are_spread_as_they_are_asked_for() -> None:
    points = random_space(
        trials=1000, batch_size={"uniform": [2, 4]}, **{"augment.flip": {"uniform": [0.2, 0.6]}}
    ).points()
    for low in (1e-4, 1e-3, 1e-2):  # a third of them in each decade: 333 +- 4 sigma
        assert 270 < sum(low <= p["learning_rate"] < 10 * low for p in points) < 400
    for n in (2, 3, 4):
        assert 270 < sum(p["batch_size"] == n for p in points) < 400
    assert 430 < sum(p["augment.flip"] < 0.4 for p in points) < 570
    assert all(0.2 <= p["augment.flip"] <= 0.6 for p in points)


def test_each_value_of_a_grid_meets_the_same_random_draws() -> None:
    points = random_space(trials=6, patch_size={"grid": ["48x48x16", "32x32x32"]}).points()
    by_size: dict[str, list[float]] = {}
    for point in points:
        by_size.setdefault(point["patch_size"], []).append(point["learning_rate"])
    rates = by_size["48x48x16"]
    assert by_size == {"48x48x16": rates, "32x32x32": rates}
    assert len(set(rates)) == 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_no_point_is_tried_twice(seed: int, trials: int) -> None:
    space = {"batch_size": {"choice": [2, 4, 6]}, "loss": {"choice": ["soft_dice", "dice_ce"]}}
    drawn = space_of(algorithm="random", seed=seed, trials=trials, space=space)
    assert len({name_of(point) for point in drawn.points()}) == trials
    tpe = Tpe(space_of(algorithm="optuna", seed=seed, trials=trials, space=space))
    assert len({name_of(tpe.ask()) for _ in range(trials)}) == trials


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_more_trials_than_points_are_refused(algorithm: str) -> None:
    with pytest.raises(ParamsError, match=r"sweep\.trials: wanted at most 2, all .*, got 5"):
        space_of(algorithm=algorithm, trials=5, space={"batch_size": {"choice": [2, 4]}})
    whole = space_of(algorithm=algorithm, trials=3, space={"batch_size": {"uniform": [2, 3]}})
    with pytest.raises(ParamsError, match=r"sweep\.trials: wanted at most 2, all .*, got 3"):
        ask_all(whole) if algorithm == "optuna" else whole.points()


def ask_all(space: Space, interrupted_at: int | None = None) -> list[dict[str, Any]]:
    """Fifteen points of which each third fails or is stopped early; the best rate is 1e-2."""
    tpe, asked = Tpe(space), list[dict[str, Any]]()

    def tell(n: int) -> None:
        score = -abs(math.log10(asked[n].get("learning_rate", 1)) + 2)
        by_epoch = [{}, {1: score}, {1: score - 1, 2: score}][n % 3]
        tpe.tell(asked[n], by_epoch, finished=n % 3 == 2)

    for n in range(15):
        if n == interrupted_at:
            tpe = Tpe(space)
            for point in asked:
                tpe.add(point)
            for before in range(n):
                tell(before)
        asked.append(tpe.ask())
        tell(n)
    return asked


def test_optuna_that_goes_on_asks_as_if_it_was_never_interrupted() -> None:
    space = space_of(
        algorithm="optuna", trials=15, space=RATE | {"batch_size": {"uniform": [2, 8]}}
    )
    asked = ask_all(space)
    assert ask_all(space, interrupted_at=11) == asked
    assert all(1e-4 <= p["learning_rate"] <= 1e-1 and p["batch_size"] in range(2, 9) for p in asked)


def test_optuna_learns_where_the_best_are() -> None:
    tpe = Tpe(space_of(algorithm="optuna", trials=60, space=RATE))
    distances = []
    for _ in range(40):
        point = tpe.ask()
        distances.append(abs(math.log10(point["learning_rate"]) + 2))
        tpe.tell(point, {1: -distances[-1]}, finished=True)
    assert sum(distances[30:]) < sum(distances[:10]) / 2


def test_a_key_within_a_section_of_train_can_be_swept(crops: Crops) -> None:
    space = {
        "learning_rate": {"choice": [1e-3]},
        "augment.intensity_scale": {"choice": [0.1, 0.2]},
        "augment.flip": {"choice": [0.25]},
        "model.base_filters": {"choice": [4]},
    }
    trials = Proposals(crops.params(sweep__space=space), crops.prepared, crops.patches).trials
    assert [trial.training.section.augment.intensity_scale for trial in trials] == [0.1, 0.2]
    for trial in trials:
        section = trial.training.section
        assert (section.augment.flip, section.augment.intensity_shift) == (0.25, 0.3)
        assert (section.model.name, section.model.depth) == ("unet3d", 2)
        assert section.model.base_filters == 4
        assert section.patch_size == (16, 16, 16)  # train's own
    assert list(trials[1].values()) == ["learning_rate", "patch_size", *list(space)[1:]]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"learning_rate": {"choice": [1e-3], "grid": [1e-3]}}, "wanted one of grid, choice, uni"),
        ({"learning_rate": {}}, "sweep.space.learning_rate: wanted one of grid, choice, uniform,"),
        ({"learning_rate": {"choice": [1e-3, 0.001]}}, "wanted different values, got [0.001, 0.0"),
        ({"learning_rate": {"loguniform": [0, 0.1]}}, "wanted numbers above 0, got [0, 0.1]"),
        ({"learning_rate": {"uniform": [0.1, 0.1]}}, "two rising numbers, such as [0.1, 0.5]"),
        ({"learning_rate": {"uniform": [0.1, "x"]}}, "two rising numbers, such as [0.1, 0.5]"),
        ({"learning_rate": {"chioce": [0.1]}}, "learning_rate.chioce: unknown key; did you mean"),
        ({}, "sweep.space: "),
    ],
)  # fmt: skip
def test_a_space_that_makes_no_sense_is_one_line(space: dict[str, Any], told: str) -> None:
    with pytest.raises(ParamsError) as error:
        space_of(space=space)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("algorithm", "space", "told"),
    [
        ("grid", RATE, "sweep.space.learning_rate: a grid has no numbers between two ends; list"),
        ("optuna", {"loss": {"grid": ["soft_dice"]}}, "space.loss: optuna chooses by itself;"),
        ("random", {"epoch_voxels": {"choice": [1]}}, "epoch_voxels: can't be swept; set sweep."),
        ("random", {"batch_size": {"uniform": [0, 4]}}, "train.batch_size: input should be gr"),
        ("random", {"batch_size": {"uniform": [1, 2.5]}}, "train.batch_size: input should be a "),
        ("optuna", {"patch_size": {"uniform": [1, 4]}}, "train.patch_size: a patch size such as"),
        ("random", {"augment.flop": {"uniform": [0, 0.1]}}, "augment.flop: unknown key"),
        ("random", {"agument.flip": {"uniform": [0, 0.1]}}, "no such section agument: got"),
        ("random", {"average": {"choice": [0.9]}}, "sweep.trials: wanted at most 1"),
    ],
)  # fmt: skip
def test_what_an_algorithm_or_train_cannot_take_is_one_line(
    algorithm: str, space: dict[str, Any], told: str, crops: Crops
) -> None:
    params = crops.params(sweep__algorithm=algorithm, sweep__space=space)
    with pytest.raises(ParamsError) as error:
        Proposals(params, crops.prepared, crops.patches)
    assert told in str(error.value)
