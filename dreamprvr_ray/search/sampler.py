"""The sampling algorithm: one of Optuna's samplers, with its own seed for every trial."""

from __future__ import annotations

import warnings
from typing import Any, assert_never

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from dreamprvr_ray.search.settings import SamplerSettings


class PerTrialSampler(BaseSampler):
    """Samples trial n with a sampler seeded by (seed, n).

    The sampler therefore has no state besides the study, and a resumed search proposes what an uninterrupted one would.
    """

    def __init__(self, settings: SamplerSettings, conditional: bool) -> None:
        """`conditional`: whether some trials lack some of the searched keys."""
        self._settings, self._conditional = settings, conditional
        self._number: int | None = None
        self._sampler: BaseSampler = RandomSampler()

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
        space: dict[str, BaseDistribution] = self._sampler_of(trial).infer_relative_search_space(study, trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        values: dict[str, Any] = self._sampler_of(trial).sample_relative(study, trial, search_space)
        return values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        # Seeded by key as well: if a kill interrupts a proposal halfway, the remaining keys get the values they would
        # have had.
        return self._create(trial.number, param_name).sample_independent(study, trial, param_name, param_distribution)
