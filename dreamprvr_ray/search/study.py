"""The Optuna study of a search: what is proposed, what is stopped early, and what Optuna is told of each trial.

All of it is decided by what the study's storage holds, so that a search which was killed and taken up again decides as one left alone.
An attribute `out` of each trial names the search directory that runs it: several drivers may share one storage.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dreamprvr_ray.errors import UserError, redact_password
from dreamprvr_ray.search.layout import JOURNAL
from dreamprvr_ray.search.settings import SamplerSettings
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.training.flops import specified_gflop

MOST_REFUSALS = 100  # proposals in a row that may break a constraint
DRIVERS = {  # what to install for a database's module, where pip calls it otherwise
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient (or pymysql, and write mysql+pymysql:// for mysql://)",
}
ABANDONED_AFTER = 60.0  # seconds: a proposal that nobody has put a name to by then was of a killed driver


@dataclass(frozen=True)
class Proposal:
    """A trial to run: `values` by dotted key; it gets the resources of so many trials."""

    number: int
    values: dict[str, Any]
    share: int = 1


class SearchStudy:
    """The study of one search, as one driver sees it."""

    def __init__(self, search: Search, out: Path, owner: str | None = None) -> None:
        self.search, self.out = search, out
        self.owner = owner or str(
            out
        )  # of the trials that this driver runs: the search's directory, where `out` is a working copy of it
        self.storage = open_storage(search.settings.store, out)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        objectives = ["SumR"] + ([search.settings.against] if search.settings.against else [])
        self.study = optuna.create_study(
            study_name=search.name,
            storage=self.storage,
            sampler=NumberedSampler(
                search.settings.sampler, conditional=any(parameter.when for parameter in search.parameters)
            ),
            directions=[StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(objectives)],
            load_if_exists=True,
        )
        self.study.set_user_attr("objectives", objectives)
        self._handed_out: set[int] = set()  # by this process, and not ended
        self._pruned: set[int] = set()
        self._rungs = (
            [] if search.settings.against else search.settings.pruning.rungs(search.experiment.training.epochs)
        )

    def trials(self) -> list[FrozenTrial]:
        """All trials but proposals that were refused."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if not trial.user_attrs.get("infeasible")]

    def propose(self) -> Proposal | None:
        """The next trial to run: one that was begun and has not ended, else a new one; None where there are enough."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (
                trial.number not in self._handed_out
                and self._is_ours(trial)
                and (proposal := self._hand_out(trial.number))
            ):
                return proposal
        trials = self.trials()
        if len(trials) >= self.search.settings.trials:
            return None
        for _ in range(MOST_REFUSALS):
            if not trials and not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self.study.enqueue_trial(self.search.paper_setting)
            proposal = self._hand_out(self.study.ask().number)
            if proposal is not None:
                return proposal
        raise UserError(
            f"{self.search.name}: {MOST_REFUSALS} proposals in a row break a constraint: {', '.join(map(str, self.search.constraints))}"
        )

    def is_done(self) -> bool:
        """Whether every trial of this driver has ended and there are enough."""
        trials = self.trials()
        return len(trials) >= self.search.settings.trials and not any(
            trial.state == TrialState.RUNNING and self._is_ours(trial) for trial in trials
        )

    def _hand_out(self, number: int) -> Proposal | None:
        """The trial with its values, asked for where a killed driver had not come to it; None where they break a constraint."""
        trial = optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
        values = self.search.suggest(trial)
        if broken := self.search.violated_constraint(values):
            trial.set_user_attr("infeasible", True)
            trial.set_user_attr("reason", f"refused: breaks {broken}")
            self.study.tell(number, state=TrialState.FAIL)
            return None
        trial.set_user_attr("out", self.owner)
        self._handed_out.add(number)
        return Proposal(number, values, trial.user_attrs.get("share", 1))

    def _is_ours(self, trial: FrozenTrial) -> bool:
        if self.search.settings.store is None:
            return True
        owner = trial.user_attrs.get("out")
        if owner is None:  # its driver was killed between two writes, or is about to write its name
            begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            return time.time() - begun > ABANDONED_AFTER
        return bool(owner == self.owner)

    def report(self, number: int, result: Mapping[str, Any]) -> None:
        """Takes a finished epoch of a trial. The step is our own count of epochs, which goes on where a trial is resumed."""
        trial = self._trial(number)
        epoch, sumr = result["epoch"], result["SumR"]
        if self.search.settings.against is None and epoch not in trial.intermediate_values:
            self.storage.set_trial_intermediate_value(trial._trial_id, epoch, sumr)

    def should_prune(self, number: int, epoch: int) -> bool:
        """Whether a trial that has finished this epoch is not among the best 1 / factor of those that have come as far.

        Each is taken by its best SumR up to then; the first to come there goes on.
        """
        if epoch not in self._rungs:
            return False
        bests = {trial.number: _best_until(trial, epoch) for trial in self.trials() if trial.state != TrialState.FAIL}
        own = bests[number]
        others = [best for other, best in bests.items() if best is not None and other != number]
        places = math.ceil((len(others) + 1) / self.search.settings.pruning.reduction_factor)
        if own is None or sum(best > own for best in others) < places:
            return False
        self._pruned.add(number)
        return True

    def end(self, number: int, result: Mapping[str, Any]) -> bool:
        """Takes the last result of a trial: complete with its best SumR, or pruned. False where it was merely interrupted."""
        self._handed_out.discard(number)
        finished = bool(result.get("finished"))
        if not finished and number not in self._pruned:
            return False
        trial = self._trial(number)
        for name in ("epoch", "best_epoch", "best_SumR", "time_total_s"):
            if name in result:
                self.storage.set_trial_user_attr(
                    trial._trial_id, {"epoch": "epochs", "time_total_s": "seconds"}.get(name, name), result[name]
                )
        values = [result["best_SumR"]]
        if self.search.settings.against:
            values.append(self._second_objective(trial, result))
        # Not by `tell`, which gives a pruned trial the value of its last epoch.
        self.storage.set_trial_state_values(
            trial._trial_id, TrialState.COMPLETE if finished else TrialState.PRUNED, values
        )
        return True

    def _second_objective(self, trial: FrozenTrial, result: Mapping[str, Any]) -> float:
        if self.search.settings.against == "encode_ms":
            return float(result["encode_ms"])
        return specified_gflop(self.search.experiment.with_values(trial.params, f"trial {trial.number}"))

    def fail(self, number: int, reason: str) -> None:
        """Takes that a trial has failed for good, and why."""
        self._handed_out.discard(number)
        self.storage.set_trial_user_attr(self._trial(number)._trial_id, "reason", reason)
        self.study.tell(number, state=TrialState.FAIL)

    def release(self, number: int) -> None:
        """Takes that a trial could not go on for a reason of its surroundings: it stays open, for when the search is taken up again."""
        self._handed_out.discard(number)

    def retry_with_more_memory(self, number: int, reason: str) -> bool:
        """Has a trial that ran out of memory run once more, with the resources of two; False where it has had that."""
        trial = self._trial(number)
        if trial.user_attrs.get("share", 1) > 1:
            return False
        self.storage.set_trial_user_attr(trial._trial_id, "share", 2)
        self.storage.set_trial_user_attr(trial._trial_id, "requeued", reason)
        self._handed_out.discard(number)
        return True

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]


def open_storage(store: str | None, out: Path) -> BaseStorage:
    """The storage at a database's URL, or the file in `out`. Raises `UserError` where there is none."""
    if store is None:
        return JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    try:
        return RDBStorage(store)
    except Exception as error:  # SQLAlchemy's, the driver's and Optuna's own
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(store, redact_password(store))
        if isinstance(error.__cause__, ModuleNotFoundError) and (module := error.__cause__.name):
            reason = f"this kind of database needs one more package: pip install {DRIVERS.get(module, module)}"
        raise UserError(f"store = {redact_password(store)}: cannot be used: {reason}") from None


class NumberedSampler(BaseSampler):
    """Draws for trial n as a sampler of the file's kind that was seeded by (seed, n): its state is the study, and nothing else."""

    def __init__(self, settings: SamplerSettings, conditional: bool) -> None:
        self._settings, self._conditional = settings, conditional
        self._number: int | None = None
        self._sampler: BaseSampler = RandomSampler()

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            self._number, self._sampler = trial.number, self._seeded(trial.number)
        return self._sampler

    def _seeded(self, number: int, name: str = "") -> BaseSampler:
        seed = int(np.random.SeedSequence([self._settings.seed, number, *name.encode()]).generate_state(1)[0])
        startup = self._settings.startup_trials
        if self._settings.kind == "random":
            return RandomSampler(seed=seed)
        if self._settings.kind == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        with warnings.catch_warnings():  # that grouping is experimental
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Without groups, keys that some trials lack would be drawn one by one.
            return TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, group=self._conditional, constant_liar=True
            )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        space: dict[str, BaseDistribution] = self._of(trial).infer_relative_search_space(study, trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        values: dict[str, Any] = self._of(trial).sample_relative(study, trial, search_space)
        return values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # Optuna's own type of it
        # By name, so that a trial whose values a kill cut off gets the others that it would have got.
        return self._seeded(trial.number, param_name).sample_independent(study, trial, param_name, param_distribution)


def _best_until(trial: FrozenTrial, epoch: int) -> float | None:
    """The best SumR of a trial's epochs up to this one; None where it did not come as far."""
    if epoch not in trial.intermediate_values:
        return None
    return float(max(sumr for step, sumr in trial.intermediate_values.items() if step <= epoch))
