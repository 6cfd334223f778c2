"""Which searched values mattered: Optuna's PED-ANOVA, and how far it stands out from what chance gives.

PED-ANOVA asks how differently a value is spread among the best trials and among all. Its shares always add up to one, even where nothing
matters at all; so the same is computed with the results shuffled among the trials, and a value counts only above what shuffling gives.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator

from dreamprvr_ray.report.experiment import Axis, SearchRecord, Trial

ENDED_NEEDED, FINISHED_NEEDED = 10, 5
SHUFFLES = 100
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Importance:
    """One key's share of what mattered, and the share that it would need to stand out from chance."""

    axis: Axis
    share: float
    chance: float

    @property
    def stands_out(self) -> bool:
        return self.share > self.chance


def importances(search: SearchRecord) -> list[Importance]:
    """The searched keys, the most important first; empty where too few trials ended to say anything.

    Which trials are the best is asked of `standings`, to which pruned trials count as much as others.
    """
    trials = search.ended
    if len(trials) < ENDED_NEEDED or len(search.in_state("finished")) < FINISHED_NEEDED or len(search.axes) < 2:
        return []
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        distributions = {key: search.distributions[key] for key in trial.values if key in search.distributions}
        values = {key: trial.values[key] for key in distributions}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=trial.sumr))
    keys = sorted({key for trial in trials for key in trial.values} & set(search.distributions))
    # At least five trials in the best part, as PED-ANOVA's authors advise, and at most half of all.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.25, 5 / len(trials))))

    def divergences(scores: np.ndarray) -> np.ndarray:
        found = evaluator.evaluate(study, keys, target=lambda trial: -float(scores[trial.number]))
        return np.array([found[key] for key in keys])

    scores = standings(trials)
    shuffling = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the target's sign, and on conditional keys with few trials
        real = divergences(scores)
        shuffled = np.stack([divergences(shuffling.permutation(scores)) for _ in range(SHUFFLES)])
    if real.sum() == 0:
        return []
    # One bound for all keys together, or of twenty keys that do not matter one would stand out. Keys differ in what chance gives them
    # (a float has more places to fall than a choice of two), so each is measured by its own.
    usual = np.maximum(shuffled.mean(axis=0), 1e-12)
    bound = np.quantile((shuffled / usual).max(axis=1), CONFIDENCE) * usual
    axes = {axis.key: axis for axis in search.axes}
    total = float(real.sum())
    found = [Importance(axes[key], float(real[i]) / total, float(bound[i]) / total) for i, key in enumerate(keys)]
    return sorted(found, key=lambda importance: -importance.share)


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


def usual_range(search: SearchRecord, axis: Axis) -> tuple[float, float] | None:
    """Where the middle of the best quarter's values lies (10% to 90% of them); None for choices."""
    values = [trial.values[axis.key] for trial in search.best_quarter() if axis.key in trial.values]
    if axis.choices is not None or not values:
        return None
    logs = np.log(values) if axis.log else np.array(values, dtype=float)
    low, high = (float(math.exp(x) if axis.log else x) for x in np.quantile(logs, [0.1, 0.9]))
    return (round(low), round(high)) if axis.whole else (low, high)
