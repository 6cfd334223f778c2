"""Between Ray Tune and the study: Ray Tune asks for trials, hands over their results, and hears which to stop."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ray.tune
from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dreamprvr_ray.errors import ObjectStoreError
from dreamprvr_ray.search.epoch_log import Records
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.trackers import trackers
from dreamprvr_ray.search.trial import FAILURE, OUT_OF_MEMORY, SHARE, TRIAL_NUMBER, run_name
from dreamprvr_ray.search.working_copy import WorkingCopy

GO_ON: str = FIFOScheduler.CONTINUE
STOP: str = FIFOScheduler.STOP
NO_MORE: str = Searcher.FINISHED


class StatelessSearcher(Searcher):
    """A searcher that has nothing to save with Ray Tune's own state: what it knows is elsewhere."""

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        pass


class StudySearcher(StatelessSearcher):
    """Asks the study for trials and tells it how each ended; calls `ended` after each end."""

    def __init__(
        self, study: SearchStudy, say: Callable[[str], None], ended: Callable[[], None], can_have_more: bool
    ) -> None:
        super().__init__()
        self.study, self.say, self.ended = study, say, ended
        self.can_have_more = can_have_more  # whether a trial that ran out of memory can be given that of two
        self.errors: dict[str, str] = {}  # why a trial was lost, by Ray Tune's name of it
        self.store_lost: str | None = None  # what the search's store said instead of an answer
        self._numbers: dict[str, int] = {}
        hours = study.search.settings.hours
        self._no_more_after = time.monotonic() + hours * 3600 if hours else None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.store_lost:
            return NO_MORE
        late = self._no_more_after is not None and time.monotonic() > self._no_more_after
        proposal = None if late else self.study.propose()
        if proposal is None:  # one that runs may come back, to be run again with more memory
            return NO_MORE if late or self.study.is_done() else None
        self._numbers[trial_id] = proposal.number
        return proposal.values | {TRIAL_NUMBER: proposal.number, SHARE: proposal.share}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass  # the scheduler has had it

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, result = self._numbers[trial_id], result or {}
        reason = self.errors.get(trial_id, "lost") if error else result.get(FAILURE)
        if error and reason and f"{ObjectStoreError.__name__}:" in reason:
            self.study.release(number)
            self.store_lost = reason.partition(f"{ObjectStoreError.__name__}: ")[2]
            return
        if (
            reason
            and result.get(OUT_OF_MEMORY)
            and self.can_have_more
            and self.study.retry_with_more_memory(number, reason)
        ):
            self.say(f"trial {number} ran out of memory: it will run again with the resources of two trials ({reason})")
            return
        if reason:
            self.study.fail(number, reason)
            self.say(f"trial {number} failed: {reason}")
        elif not self.study.end(number, result):
            return
        self.ended()


class StudyScheduler(FIFOScheduler):
    """Hands every epoch to the study and to the records, and stops the trials that the study does not want to go on."""

    def __init__(self, study: SearchStudy, records: Records, searcher: StudySearcher) -> None:
        super().__init__()
        self.study, self.records, self.searcher = study, records, searcher

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        if FAILURE in result:
            return GO_ON
        number = trial.config[TRIAL_NUMBER]
        self.study.report(number, result)
        self.records.add(run_name(trial.config), result, trial.config)
        if not result["finished"] and self.study.should_prune(number, result["epoch"]):
            return STOP
        return GO_ON

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self.records.close(run_name(trial.config))

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        lines = str(trial.get_error() or "unknown").strip().splitlines()
        self.searcher.errors[trial.trial_id] = lines[-1]
        self.records.close(run_name(trial.config))


class TrialStarted(Callback):
    """Tells the records when a trial has what it asked for and runs: nodes may come minutes after it was handed out."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.records.begin(run_name(trial.config))


class SyncCallback(Callback):
    """Has the search's store know of every epoch before its trial goes on."""

    def __init__(self, copy: WorkingCopy) -> None:
        self.copy = copy

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self.copy.keep_up()


def run_tuner(
    search: Search,
    plan: TrialPlan,
    trainable: Any,
    searcher: Searcher,
    scheduler: TrialScheduler,
    callbacks: list[ray.tune.Callback],
    copy: WorkingCopy,
) -> None:
    """Runs trials until the searcher has no more.

    Ray Tune's own records go with the block: nothing is read from them, and they hold locations with whatever keys stand in these.
    """
    # They warn that trials left none of Ray Tune's records, and when interrupted tell to go on from these: a search keeps better ones.
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-tune-", ignore_cleanup_errors=True) as folder:
        ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                num_samples=-1,  # the searcher says when there are enough
                max_concurrent_trials=plan.at_a_time,
                reuse_actors=plan.group.workers == 1,
                search_alg=searcher,
                scheduler=scheduler,
                trial_dirname_creator=lambda trial: run_name(trial.config),
            ),
            run_config=ray.tune.RunConfig(
                name=copy.storage.name,
                storage_path=folder,
                verbose=0,
                callbacks=[*callbacks, *trackers(search.settings.trackers, copy.storage.name, copy.path)],
                failure_config=ray.tune.FailureConfig(max_failures=search.experiment.training.max_failures),
            ),
        ).fit()
