"""Which parameters matter: Optuna's fANOVA importances, and how far they exceed chance.

fANOVA fits a random forest to the trials and computes, for each parameter, the share of the variance of the forest's
predictions that this parameter explains alone. A forest also finds structure in noise, so the same is computed with the
results shuffled among the trials: a parameter stands out only if its share exceeds what shuffling gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator

from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.search.results import TrialRecord

TRAINED_NEEDED, FINISHED_NEEDED = 10, 5  # trials
SHUFFLES = 60
CONFIDENCE = 0.95
TREES, DEPTH = 16, 5
MOST_TRIALS = 500  # drawn from a larger search: a forest takes a tenth of a second then


@dataclass(frozen=True)
class Importance:
    """A parameter's share of the differences between trials, and the share that chance may reach."""

    parameter: SearchedParameter
    share: float
    chance: float

    @property
    def stands_out(self) -> bool:
        """Whether the share exceeds what chance may reach."""
        return self.share > self.chance


def importances(search: SearchRecord) -> list[Importance]:
    """Estimate the importance of each parameter, the most important first.

    Trials are scored by `win_rates`. A parameter that a trial does not have, since its condition does not hold, counts
    with its baseline value. The list is empty if too few trials ended for an estimate.
    """
    trials = search.trained
    if len(trials) < TRAINED_NEEDED or len(search.in_state("finished")) < FINISHED_NEEDED or len(search.parameters) < 2:
        return []
    scores = win_rates(trials)
    if len(trials) > MOST_TRIALS:
        drawn = np.sort(np.random.default_rng(0).choice(len(trials), MOST_TRIALS, replace=False))
        trials, scores = [trials[place] for place in drawn], scores[drawn]
    # All ranges are mapped to 0 to 1, so that each part of a log scale has the same weight.
    distributions = {
        parameter.key: CategoricalDistribution(parameter.choices) if parameter.choices else FloatDistribution(0.0, 1.0)
        for parameter in search.parameters
    }
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        params = {
            parameter.key: _coordinate(parameter, trial.values.get(parameter.key, parameter.baseline))
            for parameter in search.parameters
        }
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=0.0))
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0)

    def shares(scores: np.ndarray) -> np.ndarray:
        by_key = evaluator.evaluate(study, list(distributions), target=lambda trial: float(scores[trial.number]))
        return np.array([by_key[key] for key in distributions])

    if np.ptp(scores) == 0:
        return []
    real, generator = shares(scores), np.random.default_rng(0)
    shuffled = np.stack([shares(generator.permutation(scores)) for _ in range(SHUFFLES)])
    # The bound holds for all parameters together: with one bound each, one of twenty irrelevant parameters would stand
    # out. Chance gives parameters different shares (a float can split a forest in more places than a choice of two), so
    # each is measured relative to its own mean.
    mean = np.maximum(shuffled.mean(axis=0), 1e-12)
    bound = np.minimum(np.quantile((shuffled / mean).max(axis=1), CONFIDENCE) * mean, 1.0)
    found = [
        Importance(parameter, float(share), float(chance))
        for parameter, share, chance in zip(search.parameters, real, bound, strict=True)
    ]
    return sorted(found, key=lambda importance: -importance.share)


def _coordinate(parameter: SearchedParameter, value: Any) -> Any:
    return value if parameter.choices else min(1.0, max(0.0, parameter.position(value) or 0.0))


def win_rates(trials: Sequence[TrialRecord]) -> np.ndarray:
    """Return (N,): the share of the other trials that each trial beats. A tie counts half.

    Each pair is compared by the best SumR up to the last epoch that both reached, so that training for longer is no
    advantage.
    """
    length = max((epoch for trial in trials for epoch, _ in trial.curve), default=1)
    best = np.full((len(trials), length), -math.inf)  # up to each epoch
    last = np.full(len(trials), length - 1)
    for row, trial in enumerate(trials):
        # A trial whose epochs are not recorded is compared by its best SumR.
        for epoch, value in trial.curve or ((length, trial.best_sumr),):
            best[row, epoch - 1] = value
            last[row] = epoch - 1
    best, wins = np.maximum.accumulate(best, axis=1), np.zeros(len(trials))
    # Of a pair, one ended at the epoch that is compared. Sorting makes this N log N for each epoch at which trials end.
    for epoch in np.unique(last):
        ended, longer = (last == epoch).nonzero()[0], (last > epoch).nonzero()[0]
        everyone = np.sort(best[np.concatenate([ended, longer]), epoch])
        wins[ended] += _wins(best[ended, epoch], everyone) - 0.5  # not against itself
        wins[longer] += _wins(best[longer, epoch], np.sort(best[ended, epoch]))
    rates: np.ndarray = wins / max(1, len(trials) - 1)
    return rates


def _wins(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how many of the sorted `others` each value exceeds; an equal one counts half."""
    below, not_above = (np.searchsorted(others, values, side) for side in ("left", "right"))  # type: ignore[call-overload]
    wins: np.ndarray = (below + not_above) / 2
    return wins


def win_rate_by_choice(search: SearchRecord, parameter: SearchedParameter) -> list[tuple[Any, float]]:
    """Return each choice of a parameter with the mean win rate of its trials, the best choice first."""
    groups: dict[Any, list[float]] = {}
    for trial, rate in zip(search.trained, win_rates(search.trained), strict=True):
        if parameter.key in trial.values:
            groups.setdefault(trial.values[parameter.key], []).append(float(rate))
    means = [(choice, float(np.mean(rates))) for choice, rates in groups.items()]
    return sorted(means, key=lambda choice_and_rate: -choice_and_rate[1])


def typical_range(search: SearchRecord, parameter: SearchedParameter) -> tuple[float, float] | None:
    """Return the middle 80% of a parameter's values in the best quarter of the trials; None for choices."""
    values = [trial.values[parameter.key] for trial in search.best_quarter() if parameter.key in trial.values]
    if parameter.choices is not None or not values:
        return None
    scaled = np.log(values) if parameter.log else np.array(values, dtype=float)
    low, high = (float(math.exp(x) if parameter.log else x) for x in np.quantile(scaled, [0.1, 0.9]))
    return (round(low), round(high)) if parameter.is_integer else (low, high)
