"""Points chosen by Optuna's TPE (Bergstra et al., NeurIPS 2011) from the results so far."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from gliotrail.search.space import Point, Space, name_of

_TRIES = 100


class Tpe:
    """Proposes points and learns from their results. Points are numbered in order.

    A proposal depends on the seed, the point's number and the results so far, so an interrupted
    sweep continues as if it had not been interrupted.
    """

    def __init__(self, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._study = optuna.create_study(direction="maximize")
        self._known: dict[str, int] = {}
        self._distributions = {key: _distribution(space, key) for key in space.choices}

    def add(self, point: Point) -> None:
        """Note a point that is being tried."""
        self._known[name_of(point)] = len(self._study.trials)
        self._add(TrialState.RUNNING, point)

    def _add(self, state: TrialState, point: Point, **more: Any) -> None:
        of = self._distributions
        self._study.add_trial(create_trial(state=state, params=point, distributions=of, **more))

    def ask(self) -> Point:
        """Propose a new point.

        Raises:
            ParamsError: no new point is left.
        """
        for point in self._candidates():
            if name_of(point) not in self._known:
                self.add(point)
                return point
        raise self._space.too_few(len(self._known))

    def _candidates(self) -> Iterator[Point]:
        number = len(self._known)
        seed = np.random.SeedSequence((self._space.sweep.seed, number)).generate_state(1)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(seed=int(seed), constant_liar=True)
        trial = self._study.ask(self._distributions)
        self._study.tell(trial, state=TrialState.FAIL)  # added again once it is taken
        yield dict(trial.params)
        for n in range(_TRIES):  # it proposed a known point
            yield self._space.draw(number * _TRIES + n)

    def tell(self, point: Point, by_epoch: Mapping[int, float], finished: bool) -> None:
        """Note a point's values by epoch, and whether it finished; no value if it failed."""
        self._study.tell(self._known[name_of(point)], state=TrialState.FAIL)  # it has ended
        if by_epoch:
            last = {"value": by_epoch[max(by_epoch)]} if finished else {}
            state = TrialState.COMPLETE if finished else TrialState.PRUNED
            self._add(state, point, intermediate_values=dict(by_epoch), **last)


def _distribution(space: Space, key: str) -> BaseDistribution:
    choice = space.choices[key]
    if choice.choice:
        return CategoricalDistribution(choice.choice)
    log = choice.loguniform is not None
    low, high = choice.loguniform or choice.uniform or ()
    if space.is_whole(key):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)
