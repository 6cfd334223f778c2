"""Retraining the candidates of a finished search with several seeds, by Ray Tune.

The runs are independent of Optuna: Ray Tune starts them in order, as many at a time as trials ran. Each has a directory
of its own, such as `OUT/final/trial_005-seed_1`, from which it resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.errors import Failure
from dreamprvr_ray.evaluation.test_record import recorded_test
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.search.candidates import final_settings, run_values, skipped_ablations
from dreamprvr_ray.search.epoch_log import Records
from dreamprvr_ray.search.layout import CHECKPOINTS, FINAL_RUNS
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.ray_tune import GO_ON, NO_MORE, StatelessSearcher, SyncCallback, TrialStarted, run_tuner
from dreamprvr_ray.search.results import Candidate
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.trial import RUN, TRIAL_NUMBER, run_name
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import TrialFailure
from dreamprvr_ray.training.reporter import EpochResult, duration, latest_result


def retrain_candidates(
    search: Search,
    candidates: Sequence[Candidate],
    trainable: Any,
    plan: TrialPlan,
    copy: WorkingCopy,
    gauges: Gauges,
    say: Callable[[str], None],
) -> None:
    """Train every candidate with every seed. Runs that have finished before are not repeated.

    Raises `Failure` if a run cannot be trained, and `KeyboardInterrupt` if one was interrupted.
    """
    if skipped := skipped_ablations(search, candidates):
        say(f"final: skipping ablation: the best trial already uses the paper's value of {', '.join(skipped)}")
    runs = {
        candidate.run_name(seed): (candidate, seed)
        for candidate in candidates
        for seed in range(final_settings(search).seeds)
    }
    final_runs = copy.storage / FINAL_RUNS
    waiting = [name for name in runs if not is_trained(final_runs / name)]
    if not waiting:
        return
    names = ", ".join(candidate.name for candidate in candidates)
    say(f"final: training {names}: {len(waiting)} runs, {plan.at_a_time} at a time")
    requests = {
        name: run_values(search, *runs[name]) | {TRIAL_NUMBER: runs[name][0].trial, RUN: name} for name in waiting
    }
    queue = RunQueue(requests)
    records = Records(copy.path / FINAL_RUNS, gauges)
    scheduler = RunScheduler(records, queue, say)
    run_tuner(search, plan, trainable, queue, scheduler, [TrialStarted(records), SyncCallback(copy)], copy)
    if queue.failures:
        failures = "; ".join(f"{name} failed: {reason}" for name, reason in queue.failures.items())
        raise Failure(f"{copy.storage}: {failures}")
    if not all(is_trained(final_runs / name) for name in runs):
        raise KeyboardInterrupt


def is_trained(run: Storage) -> bool:
    """Return whether a run has finished. A run that was tested has, although only its best checkpoint is left."""
    checkpoints = CheckpointStore(run / CHECKPOINTS)
    latest = latest_result(checkpoints)
    return latest is not None and (latest.finished or recorded_test(checkpoints.at(latest.best_epoch)) is not None)


class RunQueue(StatelessSearcher):
    """Gives Ray Tune the waiting runs in order, and collects why runs failed, by the run's name."""

    def __init__(self, requests: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self._requests: Iterator[tuple[str, dict[str, Any]]] = iter(requests.items())
        self._names: dict[str, str] = {}  # of runs, by Ray Tune's trial id
        self.failures: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        name, request = next(self._requests, (None, None))
        if name is None or request is None:
            return NO_MORE
        self._names[trial_id] = name
        return request

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self._names[trial_id]
        if error:
            self.failures.setdefault(name, "lost")
        elif failure := TrialFailure.from_dict(result or {}):
            self.failures[name] = failure.reason


class RunScheduler(FIFOScheduler):
    """Logs every epoch and prints the result of each run that finishes."""

    def __init__(self, records: Records, queue: RunQueue, say: Callable[[str], None]) -> None:
        super().__init__()
        self.records, self.queue, self.say = records, queue, say

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        if TrialFailure.from_dict(result) is None:
            name, epoch = run_name(trial.config), EpochResult.from_dict(result)
            self.records.add(name, result, trial.config)
            if epoch.finished:
                self.say(
                    f"final: {name}: val SumR {epoch.best_sumr:.1f} at epoch {epoch.best_epoch} of {epoch.epoch},"
                    f" {duration(result['time_total_s'])}"
                )
        return GO_ON

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self.records.close(run_name(trial.config))

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        self.queue.failures[run_name(trial.config)] = str(trial.get_error() or "lost").strip().splitlines()[-1]
        self.records.close(run_name(trial.config))
