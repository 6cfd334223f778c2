"""Retraining the candidates of a finished search with several seeds, by Ray Tune.

The runs are independent of Optuna: Ray Tune starts them in order, as many at a time as trials ran. Each has its own
directory, such as `OUT/final/trial_005-seed_1`, from which it resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.errors import Failure, SearchInterrupted
from dreamprvr_ray.evaluation.test_record import recorded_test
from dreamprvr_ray.search.candidates import final_settings, run_values, skipped_ablations
from dreamprvr_ray.search.final_result import Candidate
from dreamprvr_ray.search.layout import CHECKPOINTS, FINAL_RUNS
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest
from dreamprvr_ray.search.ray_tune import run_trials
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import TrialFailure
from dreamprvr_ray.training.reporter import duration, latest_result


def retrain_candidates(session: SearchSession, candidates: Sequence[Candidate]) -> None:
    """Train every candidate with every seed. Runs that have finished before are not repeated.

    Raises `Failure` if a run cannot be trained, and `SearchInterrupted` if one was interrupted.
    """
    search, log = session.search, session.log
    if skipped := skipped_ablations(search, candidates):
        log(f"final: skipping ablation: the best trial already uses the paper's value of {', '.join(skipped)}")
    requests = final_requests(search, candidates)
    final_runs = session.storage / FINAL_RUNS
    waiting = [request for request in requests if not is_trained(final_runs / request.run)]
    if not waiting:
        return
    names = ", ".join(candidate.name for candidate in candidates)
    log(f"final: training {names}: {len(waiting)} runs, {session.plan.at_a_time} at a time")
    queue = RunQueue(waiting, log)
    run_trials(session, queue, FINAL_RUNS)
    if queue.failures:
        failures = "; ".join(f"{name} failed: {reason}" for name, reason in queue.failures.items())
        raise Failure(f"{session.storage}: {failures}")
    if not all(is_trained(final_runs / request.run) for request in requests):
        raise SearchInterrupted(f"{session.storage}: a final run was interrupted")


def final_requests(search: Search, candidates: Sequence[Candidate]) -> list[TrialRequest]:
    """Return a run for each candidate and seed."""
    requests = []
    for candidate in candidates:
        assert candidate.trial is not None
        for seed in range(final_settings(search).seeds):
            values = run_values(search, candidate, seed)
            requests.append(TrialRequest(candidate.trial, 1, candidate.run_name(seed), values))
    return requests


def is_trained(run: Storage) -> bool:
    """Return whether a run has finished. A run that was tested has, although only its best checkpoint is left."""
    checkpoints = CheckpointStore(run / CHECKPOINTS)
    latest = latest_result(checkpoints)
    return latest is not None and (latest.finished or recorded_test(checkpoints.at(latest.best_epoch)) is not None)


class RunQueue:
    """The waiting runs in order, as a `TrialSource`; collects why runs failed, by the run's name."""

    def __init__(self, waiting: Iterable[TrialRequest], log: Callable[[str], None]) -> None:
        self._waiting, self._log = list(waiting), log
        self.failures: dict[str, str] = {}

    def next_request(self) -> TrialRequest | None:
        return self._waiting.pop(0) if self._waiting else None

    def is_exhausted(self) -> bool:
        return not self._waiting

    def report(self, request: TrialRequest, epoch: TrialEpoch) -> bool:
        result = epoch.result
        if result.finished:
            self._log(
                f"final: {request.run}: val SumR {result.best_sumr:.1f} at epoch {result.best_epoch} of {result.epoch},"
                f" {duration(epoch.seconds_total)}"
            )
        return False

    def finish(self, request: TrialRequest, last: TrialEpoch | None) -> None:
        pass  # its checkpoints show whether it has finished

    def fail(self, request: TrialRequest, failure: TrialFailure) -> None:
        self.failures[request.run] = failure.reason
