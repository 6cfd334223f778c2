"""The sampling algorithm: one of Optuna's samplers, with its own seed for every trial.

A proposal takes a bounded time: of more than MAX_TRIALS ended trials, the sampler sees the best and the most recent
ones. TPE calls at most the best 25 trials good, whatever their number, and weighs the others by their age: it loses
some of those that it compares the good ones with.
"""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Container, Sequence
from typing import Any, assert_never, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dreamprvr_ray.search.settings import SamplerSettings

MAX_TRIALS = 1000  # ended trials that a sampler sees
BEST_TRIALS = 100  # of these: the best ones of all, however old they are


class PerTrialSampler(BaseSampler):
    """Samples trial n with a sampler seeded by (seed, n).

    The sampler therefore has no state besides the study, and a resumed search proposes what an uninterrupted one would.
    """

    def __init__(self, settings: SamplerSettings, conditional: bool) -> None:
        """`conditional`: whether some trials lack some of the searched keys."""
        self._settings, self._conditional = settings, conditional
        self._number: int | None = None
        self._sampler: BaseSampler = RandomSampler()
        self._seen: optuna.Study | None = None  # the study as the sampler sees it, for the trial `_number`

    def _sampler_of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            self._number, self._sampler = trial.number, self._create(trial.number)
        return self._sampler

    def _create(self, number: int, key: str = "") -> BaseSampler:
        """`key`: of one value that is sampled independently of the others."""
        seed = int(np.random.SeedSequence([self._settings.seed, number, *key.encode()]).generate_state(1)[0])
        startup = self._settings.startup_trials
        if self._settings.kind == "random":
            return RandomSampler(seed=seed)
        if self._settings.kind == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if self._settings.kind == "tpe":
            with warnings.catch_warnings():  # `group` is experimental
                warnings.simplefilter("ignore", ExperimentalWarning)
                # Without groups, keys that some trials lack would be sampled independently of each other.
                return TPESampler(
                    seed=seed, n_startup_trials=startup, multivariate=True, group=self._conditional, constant_liar=True
                )
        assert_never(self._settings.kind)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._seen = _limited(study)
        space: dict[str, BaseDistribution] = self._sampler_of(trial).infer_relative_search_space(self._seen, trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        values: dict[str, Any] = self._sampler_of(trial).sample_relative(self._seen or study, trial, search_space)
        return values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        # Seeded by key as well: if a kill interrupts a proposal halfway, the remaining keys get the values they would
        # have had.
        sampler = self._create(trial.number, param_name)
        return sampler.sample_independent(self._seen or study, trial, param_name, param_distribution)


class _LimitedStudy:
    """A study with some of its trials. Optuna's samplers read them by `_get_trials`, which has no public equivalent."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


def _limited(study: optuna.Study) -> optuna.Study:
    """Return the study, or one with the trials that the sampler may see if there are too many."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    if len(ended) <= MAX_TRIALS:
        return study
    recent = BEST_TRIALS - MAX_TRIALS
    seen = _best(study, ended[:recent]) + ended[recent:]
    seen += study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return cast(optuna.Study, _LimitedStudy(study, sorted(seen, key=lambda trial: trial.number)))


def _best(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return at most `BEST_TRIALS` trials: those with the best value, or those that no other one surpasses in both."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in study.directions]
    if len(signs) == 1:
        return heapq.nsmallest(BEST_TRIALS, complete, key=lambda trial: signs[0] * trial.value)
    front: list[FrozenTrial] = []
    lowest = math.inf
    for trial in sorted(complete, key=lambda trial: [signs[0] * trial.values[0], signs[1] * trial.values[1]]):
        if (second := signs[1] * trial.values[1]) < lowest:
            lowest = second
            front.append(trial)
    return front[:BEST_TRIALS]
