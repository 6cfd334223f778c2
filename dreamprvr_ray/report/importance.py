"""Which searched values mattered: Optuna's fANOVA, and how far it stands out from what chance gives.

fANOVA fits a forest to the trials and asks which share of the differences that it predicts comes from one key, whatever the others are. A
forest finds something in noise as well; so the same is computed with the results shuffled among the trials, and a key counts only above what
shuffling gives.
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

from dreamprvr_ray.report.experiment import Axis, SearchRecord, Trial

ENDED_NEEDED, FINISHED_NEEDED = 10, 5
SHUFFLES = 60
CONFIDENCE = 0.95
TREES, DEPTH = 16, 5  # a forest in a tenth of a second, however many the trials


@dataclass(frozen=True)
class Importance:
    """One key's share of the differences between trials, and the share that it would need to stand out from chance."""

    axis: Axis
    share: float
    chance: float

    @property
    def stands_out(self) -> bool:
        return self.share > self.chance


def importances(search: SearchRecord) -> list[Importance]:
    """The searched keys, the most important first; empty where too few trials ended to say anything.

    How good a trial is, `standings` says. A key that a trial does not have, since its condition does not hold, counts as the configuration's own.
    """
    trials = search.ended
    if len(trials) < ENDED_NEEDED or len(search.in_state("finished")) < FINISHED_NEEDED or len(search.axes) < 2:
        return []
    # Every range from 0 to 1, so that each part of a log scale weighs the same.
    places = {
        axis.key: CategoricalDistribution(axis.choices) if axis.choices else FloatDistribution(0.0, 1.0)
        for axis in search.axes
    }
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        at = {axis.key: _place(axis, trial.values.get(axis.key, axis.own)) for axis in search.axes}
        study.add_trial(optuna.trial.create_trial(params=at, distributions=places, value=0.0))
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0)

    def shares(scores: np.ndarray) -> np.ndarray:
        found = evaluator.evaluate(study, list(places), target=lambda trial: float(scores[trial.number]))
        return np.array([found[key] for key in places])

    scores = standings(trials)
    if np.ptp(scores) == 0:
        return []
    real, shuffling = shares(scores), np.random.default_rng(0)
    shuffled = np.stack([shares(shuffling.permutation(scores)) for _ in range(SHUFFLES)])
    # One bound for all keys together, or of twenty keys that do not matter one would stand out. Keys differ in what chance gives them
    # (a float has more places to fall than a choice of two), so each is measured by its own.
    usual = np.maximum(shuffled.mean(axis=0), 1e-12)
    bound = np.quantile((shuffled / usual).max(axis=1), CONFIDENCE) * usual
    found = [
        Importance(axis, float(share), float(chance))
        for axis, share, chance in zip(search.axes, real, bound, strict=True)
    ]
    return sorted(found, key=lambda importance: -importance.share)


def _place(axis: Axis, value: Any) -> Any:
    return value if axis.choices else min(1.0, max(0.0, axis.position(value) or 0.0))


def standings(trials: Sequence[Trial]) -> np.ndarray:
    """(N,): the share of the others that each of the trials beats, a tie being half.

    Every two are compared by their best SumR up to the last epoch that both reached: to be trained for longer is no merit.
    """
    length = max((epoch for trial in trials for epoch, _ in trial.curve), default=1)
    best = np.full((len(trials), length), -math.inf)  # so far, after each epoch
    last = np.full(len(trials), length - 1)
    for row, trial in enumerate(trials):
        for epoch, value in trial.curve or ((length, trial.sumr),):  # without a record of epochs: what it reached
            best[row, epoch - 1] = value
            last[row] = epoch - 1
    best = np.maximum.accumulate(best, axis=1)
    both = np.minimum(last[:, None], last[None, :])  # (N, N)
    own, other = best[np.arange(len(trials))[:, None], both], best[np.arange(len(trials))[None, :], both]
    beaten = np.where(own == other, 0.5, own > other)
    np.fill_diagonal(beaten, 0.0)
    found: np.ndarray = beaten.sum(axis=1) / max(1, len(trials) - 1)
    return found


def beaten_by_choice(search: SearchRecord, axis: Axis) -> list[tuple[Any, float]]:
    """Each choice with the share of all other trials that those with it beat on average, the best choice first."""
    groups: dict[Any, list[float]] = {}
    for trial, standing in zip(search.ended, standings(search.ended), strict=True):
        if axis.key in trial.values:
            groups.setdefault(trial.values[axis.key], []).append(float(standing))
    return sorted(((choice, float(np.mean(group))) for choice, group in groups.items()), key=lambda each: -each[1])


def usual_range(search: SearchRecord, axis: Axis) -> tuple[float, float] | None:
    """Where the middle of the best quarter's values lies (10% to 90% of them); None for choices."""
    values = [trial.values[axis.key] for trial in search.best_quarter() if axis.key in trial.values]
    if axis.choices is not None or not values:
        return None
    logs = np.log(values) if axis.log else np.array(values, dtype=float)
    low, high = (float(math.exp(x) if axis.log else x) for x in np.quantile(logs, [0.1, 0.9]))
    return (round(low), round(high)) if axis.whole else (low, high)
