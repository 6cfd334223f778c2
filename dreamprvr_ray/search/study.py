"""The Optuna study of a search: it proposes trials, decides which to prune, and records how each one ended.

Every decision depends only on what the study's storage holds, so that a resumed search makes the same decisions as an
uninterrupted one. The user attribute `out` of a trial names its search, which is the study's owner: see `shared_store`.
"""

from __future__ import annotations

import bisect
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dreamprvr_ray.errors import UserError, first_line, redact, redact_uri
from dreamprvr_ray.search.journal import SafeJournal
from dreamprvr_ray.search.layout import JOURNAL
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest
from dreamprvr_ray.search.results import TrialRecord, rank_key
from dreamprvr_ray.search.sampler import PerTrialSampler
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.training.flops import specified_gflop

RUNGS = "pruned_at_rung"  # user attribute of a trial: whether it was pruned, by the epoch of each rung that it reached
SECONDS_USED = "seconds_used"  # user attribute of a study
MAX_REJECTIONS = 100  # consecutive proposals that may violate a constraint
ABANDONED_AFTER = 60.0  # seconds after which a proposal without an owner is taken to be from a killed driver
DATABASE_PACKAGES = {  # what to install for a database driver whose package has another name
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient (or pymysql, and write mysql+pymysql:// for mysql://)",
}


class SearchStudy:
    """The study of one search, as one driver sees it."""

    def __init__(
        self, search: Search, directory: Path, owner: str | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        """Open or create the study.

        `directory` holds its journal. `owner` identifies this driver's trials in a shared database: the search's
        location, by default `directory`. `check` is called before each write to the journal: see `WorkingCopy`.
        """
        self.search = search
        self.owner = owner or str(directory)
        self.storage = open_storage(search.settings.store, directory, check)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        objectives = ["SumR"] + ([search.settings.against] if search.settings.against else [])
        conditional = any(parameter.when for parameter in search.parameters)
        self.study = optuna.create_study(
            study_name=search.name,
            storage=self.storage,
            sampler=PerTrialSampler(search.settings.sampler, conditional),
            directions=[StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(objectives)],
            load_if_exists=True,
        )
        self.study.set_user_attr("objectives", objectives)
        _name_objectives(self.study, ["val SumR", *objectives[1:]])
        self._running: set[int] = set()  # proposed by this process and not ended
        self._pruned: set[int] = set()
        self._ended: list[TrialRecord] = []  # the trials that have ended, best first
        self._ended_numbers: set[int] = set()
        self._best_at_rung: dict[int, dict[int, float | None]] = {}  # of those, by epoch and number
        self._rungs = (
            [] if search.settings.against else search.settings.pruning.rungs(search.experiment.training.epochs)
        )

    def trials(self) -> list[FrozenTrial]:
        """Return all trials except rejected proposals."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if not trial.user_attrs.get("infeasible")]

    def ranked(self) -> list[TrialRecord]:
        """Return the records of all trials except rejected proposals, best first, without their curves.

        A trial that has ended is converted and ranked once: it does not change any more.
        """
        open_trials = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number in self._ended_numbers or trial.user_attrs.get("infeasible"):
                continue
            record = replace(TrialRecord.from_study(trial), curve=())
            if trial.state.is_finished():
                self._ended_numbers.add(trial.number)
                bisect.insort(self._ended, record, key=rank_key)
            else:
                open_trials.append(record)
        ranked = self._ended.copy()
        for record in open_trials:
            bisect.insort(ranked, record, key=rank_key)
        return ranked

    def proposals(self) -> int:
        """Return the number of all proposals, the rejected ones included."""
        return len(self.study.get_trials(deepcopy=False))

    def propose(self) -> TrialRequest | None:
        """Return the next trial to run: an interrupted one if there is any, else a new one; None if no more are needed.

        Raises `UserError` if too many consecutive proposals violate a constraint.
        """
        if request := self.propose_interrupted():
            return request
        trials = self.trials()
        if len(trials) >= self.search.settings.trials:
            return None
        for _ in range(MAX_REJECTIONS):
            if not trials and not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self.study.enqueue_trial(self.search.paper_setting)
            request = self._request(self.study.ask().number)
            if request is not None:
                return request
        raise UserError(
            f"{self.search.name}: {MAX_REJECTIONS} consecutive proposals violate a constraint;"
            f" relax the constraints: {', '.join(map(str, self.search.constraints))}"
        )

    def propose_interrupted(self) -> TrialRequest | None:
        """Return a trial that has been started but does not run, or None."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            interrupted = trial.number not in self._running and self._is_own(trial)
            if interrupted and (request := self._request(trial.number)):
                return request
        return None

    @property
    def seconds_used(self) -> float:
        """The seconds for which drivers have worked on the study, if it has a time limit."""
        seconds = self.study.user_attrs.get(SECONDS_USED, 0.0)
        return float(seconds) if isinstance(seconds, (int, float)) else 0.0

    @seconds_used.setter
    def seconds_used(self, seconds: float) -> None:
        self.study.set_user_attr(SECONDS_USED, round(seconds, 1))

    def is_done(self, without_new: bool = False) -> bool:
        """Return whether the study has all its trials, or gets no new ones, and this driver's have ended."""
        trials = self.trials()
        return (without_new or len(trials) >= self.search.settings.trials) and not any(
            trial.state == TrialState.RUNNING and self._is_own(trial) for trial in trials
        )

    def _request(self, number: int) -> TrialRequest | None:
        """Return a trial with its values, or None if they are rejected. Samples values that a killed driver did not."""
        trial = optuna.Trial(self.study, _storage_id(self._trial(number)))
        values = self.search.suggest(trial)
        if reason := self.search.reason_to_reject(values):
            trial.set_user_attr("infeasible", True)
            trial.set_user_attr("reason", f"rejected: {reason}")
            self.study.tell(number, state=TrialState.FAIL)
            return None
        trial.set_user_attr("out", self.owner)
        self._running.add(number)
        return TrialRequest.for_trial(number, values, trial.user_attrs.get("share", 1))

    def _is_own(self, trial: FrozenTrial) -> bool:
        if self.search.settings.store is None:
            return True
        owner = trial.user_attrs.get("out")
        if owner is None:  # its driver was killed between two writes, or is just about to write its name
            started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            return time.time() - started > ABANDONED_AFTER
        return bool(owner == self.owner)

    def report(self, number: int, epoch: TrialEpoch) -> None:
        """Record a finished epoch. The step is the training's own epoch count, which a resumed trial continues."""
        trial = self._trial(number)
        if self.search.settings.against is None and epoch.result.epoch not in trial.intermediate_values:
            self.storage.set_trial_intermediate_value(_storage_id(trial), epoch.result.epoch, epoch.result.sumr)

    def should_prune(self, number: int, epoch: int) -> bool:
        """Return whether to prune a trial that has just finished `epoch`.

        Only the best 1 / `reduction_factor` of the trials that got this far continue, compared by their best SumR up to
        this epoch. The first trial to get here always continues. A trial is judged once at each rung: the decision is
        recorded, and holds when the trial reports the epoch again after it was resumed, whatever other trials have
        reached since.
        """
        if epoch not in self._rungs:
            return False
        trial = self._trial(number)
        decisions: dict[str, bool] = trial.user_attrs.get(RUNGS, {})
        prune = decisions.get(str(epoch))
        if prune is None:
            prune = self._is_beaten(trial, epoch)
            self._set_attribute(trial, RUNGS, decisions | {str(epoch): prune})
        if prune:
            self._pruned.add(number)
        return prune

    def _is_beaten(self, trial: FrozenTrial, epoch: int) -> bool:
        own = _best_until(trial, epoch)
        known = self._best_at_rung.setdefault(epoch, {})
        others = []
        for other in self.trials():
            if other.number in known:
                best = known[other.number]
            else:
                best = None if other.state == TrialState.FAIL else _best_until(other, epoch)
                if other.state.is_finished():
                    known[other.number] = best
            if best is not None and other.number != trial.number:
                others.append(best)
        places = math.ceil((len(others) + 1) / self.search.settings.pruning.reduction_factor)
        return own is not None and sum(best > own for best in others) >= places

    def finish(self, number: int, last: TrialEpoch) -> bool:
        """Record that a trial has ended after its epoch `last`: complete with its best SumR, or pruned.

        Return False, and record nothing, if the trial was only interrupted.
        """
        self._running.discard(number)
        if not last.result.finished and number not in self._pruned:
            return False
        trial = self._trial(number)
        self._set_attribute(trial, "epochs", last.result.epoch)
        self._set_attribute(trial, "best_epoch", last.result.best_epoch)
        self._set_attribute(trial, "best_SumR", last.result.best_sumr)
        self._set_attribute(trial, "seconds", last.seconds_total)
        values = [last.result.best_sumr]
        if self.search.settings.against:
            values.append(self._second_objective(trial, last))
        state = TrialState.COMPLETE if last.result.finished else TrialState.PRUNED
        # Not with `tell`, which gives a pruned trial the value of its last epoch.
        self.storage.set_trial_state_values(_storage_id(trial), state, values)
        return True

    def _second_objective(self, trial: FrozenTrial, last: TrialEpoch) -> float:
        if self.search.settings.against == "encode_ms":
            assert last.result.encode_ms is not None
            return last.result.encode_ms
        return specified_gflop(self.search.experiment.with_values(trial.params, f"trial {trial.number}"))

    def fail(self, number: int, reason: str) -> None:
        """Record that a trial has failed for good."""
        self._running.discard(number)
        self._set_attribute(self._trial(number), "reason", reason)
        self.study.tell(number, state=TrialState.FAIL)

    def release(self, number: int) -> None:
        """Leave a trial open: it is proposed again, by this process or when the search is resumed."""
        self._running.discard(number)

    def retry_with_more_memory(self, number: int, reason: str) -> bool:
        """Propose a trial that ran out of memory once more, with the resources of two trials.

        Return False if it has already had them.
        """
        trial = self._trial(number)
        if trial.user_attrs.get("share", 1) > 1:
            return False
        self._set_attribute(trial, "share", 2)
        self._set_attribute(trial, "requeued", reason)
        self.release(number)
        return True

    def _trial(self, number: int) -> FrozenTrial:
        # Not from `get_trials`, which makes a list of all trials. Optuna has no public accessor for the study's id.
        identifier = self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        return self.storage.get_trial(identifier)

    def _set_attribute(self, trial: FrozenTrial, name: str, value: Any) -> None:
        self.storage.set_trial_user_attr(_storage_id(trial), name, value)


def _name_objectives(study: optuna.Study, names: list[str]) -> None:
    """Give the study's objectives names, which Optuna's dashboard shows."""
    if study.metric_names != names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna, which calls the method experimental
            study.set_metric_names(names)


def open_storage(store: str | None, directory: Path, check: Callable[[], None] = lambda: None) -> BaseStorage:
    """Open the database at a URL, or the journal in `directory`. Raises `UserError` if the database cannot be used."""
    if store is None:
        return JournalStorage(SafeJournal(directory / JOURNAL, check))
    try:
        return RDBStorage(store)
    except Exception as error:  # the types of SQLAlchemy, the database driver and Optuna have no common base
        reason = redact(first_line(error).replace(store, redact_uri(store)))
        if isinstance(error.__cause__, ModuleNotFoundError) and (module := error.__cause__.name):
            reason = f"its driver is not installed: pip install {DATABASE_PACKAGES.get(module, module)}"
        raise UserError(f"store = {redact_uri(store)}: cannot be used: {reason}") from None


def _best_until(trial: FrozenTrial, epoch: int) -> float | None:
    """Return the best SumR of a trial's epochs up to this one; None if it did not get that far.

    A trial that finished earlier, since its patience ran out, counts with its best: longer training would not have
    changed it.
    """
    if epoch not in trial.intermediate_values and trial.state != TrialState.COMPLETE:
        return None
    return max((float(sumr) for step, sumr in trial.intermediate_values.items() if step <= epoch), default=None)


def _storage_id(trial: FrozenTrial) -> int:
    """Return the identifier under which the storage keeps a trial. Optuna has no public accessor for it."""
    identifier: int = trial._trial_id
    return identifier
