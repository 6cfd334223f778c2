"""Retraining the candidates of a finished search with several seeds, by Ray Tune.

The runs are independent of Optuna: Ray Tune starts them in order, as many at a time as trials ran. Each has its own
directory, such as `OUT/final/trial_005-seed_1`, from which it resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dreamprvr_ray.config import baseline_name
from dreamprvr_ray.data.collections import open_manifest
from dreamprvr_ray.errors import Failure, SearchInterrupted
from dreamprvr_ray.search.candidates import final_settings, skipped_ablations
from dreamprvr_ray.search.final_result import Candidate
from dreamprvr_ray.search.final_runs import PlannedRun, is_trained, plan_runs
from dreamprvr_ray.search.layout import FINAL_PLAN, FINAL_RUNS
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest
from dreamprvr_ray.search.progress import FinalProgress
from dreamprvr_ray.search.ray_tune import run_trials
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.space import WITH_VAL
from dreamprvr_ray.storage.files import write_text
from dreamprvr_ray.training.failure import TrialFailure
from dreamprvr_ray.training.reporter import duration

EPOCHS_KEY = "training.epochs"


def retrain_candidates(session: SearchSession, candidates: Sequence[Candidate]) -> list[PlannedRun]:
    """Train every candidate with every seed, and return the runs. Runs that have finished before are not repeated.

    Raises `Failure` if a run cannot be trained or a disk is full, and `SearchInterrupted` if one was interrupted.
    """
    search, log = session.search, session.log
    if skipped := skipped_ablations(search, candidates):
        owner = baseline_name(search.experiment).removesuffix(" settings")
        log(f"final: skipping ablation: the best trial already uses {owner} value of {', '.join(skipped)}")
    final_runs = session.storage / FINAL_RUNS
    runs = plan_runs(search, candidates, open_manifest(session.shards), final_runs, log)
    # For the report, which shows how far the final stage is.
    names = [run.request.run for run in runs]
    write_text(session.copy.path / FINAL_PLAN, json.dumps({"runs": names}, indent=1) + "\n")
    waiting = [run.request for run in runs if not is_trained(final_runs / run.request.run)]
    if not waiting:
        return runs
    listed = ", ".join(candidate.shown_name for candidate in candidates)
    settings = "1 setting" if len(candidates) == 1 else f"{len(candidates)} settings"
    log(f"final stage: {len(waiting)} runs of {settings} ({listed}), {session.plan.at_a_time} at a time")
    if final_settings(search).with_val:
        for candidate in candidates:
            log(_describe_epochs(candidate))
    queue = RunQueue(waiting, log, finished=len(runs) - len(waiting), can_have_more=session.plan.can_have_more)
    epochs = {
        request.run: int(request.values.get(EPOCHS_KEY, search.experiment.training.epochs)) for request in waiting
    }
    run_trials(session, queue, FINAL_RUNS, FinalProgress(epochs, log))
    session.copy.check_lease()
    if queue.interruption:
        raise Failure(f"{queue.interruption}; no run is lost: fix the cause, then use --resume to continue")
    if queue.failures:
        failures = "; ".join(f"{name} failed: {reason}" for name, reason in queue.failures.items())
        raise Failure(f"{session.storage}: {failures}")
    if not all(is_trained(final_runs / run.request.run) for run in runs):
        raise SearchInterrupted(f"{session.storage}: a final run was interrupted")
    log(f"final stage: evaluating {len(runs)} runs once on test")
    return runs


def _describe_epochs(candidate: Candidate) -> str:
    epochs = candidate.epochs_with_val
    if epochs == candidate.best_epoch:
        reason = "the trial's best epoch"
    else:
        reason = f"since trial {candidate.trial} did not train in full and its best epoch is not known"
    return f"final: {candidate.shown_name}: {epochs} epochs on train and val, {reason}"


class RunQueue:
    """The waiting runs in order, as a `TrialSource`; collects why runs failed, by the run's name."""

    def __init__(
        self,
        waiting: Iterable[TrialRequest],
        log: Callable[[str], None],
        finished: int = 0,
        can_have_more: bool = False,
        stage: str = "final",
        on_finish: Callable[[], None] | None = None,
    ) -> None:
        """`finished` counts the runs that need no training any more.

        With `can_have_more`, a run that runs out of memory is repeated with the resources of two. Messages start with
        `stage`; `on_finish` is called when a run has ended.
        """
        self._waiting, self._log, self._can_have_more = list(waiting), log, can_have_more
        self._stage, self._on_finish = stage, on_finish
        self._finished_before, self._planned = finished, finished + len(self._waiting)
        self._running: set[str] = set()
        self._finished: set[str] = set()
        self.failures: dict[str, str] = {}
        self.interruption: str | None = None  # why the stage ended for a reason that is not a run's own

    def next_request(self) -> TrialRequest | None:
        if not self._waiting:
            return None
        request = self._waiting.pop(0)
        self._running.add(request.run)
        return request

    def is_exhausted(self) -> bool:
        # Not before the running ones have ended: one that runs out of memory waits again.
        return not self._waiting and not (self._can_have_more and self._running)

    def report(self, request: TrialRequest, epoch: TrialEpoch) -> bool:
        result = epoch.result
        if result.finished:
            self._finished.add(request.run)
            finished = self._finished_before + len(self._finished)
            val = f"val SumR {result.best_sumr:.1f} at epoch {result.best_epoch} of {result.epoch}"
            if request.values.get(WITH_VAL):
                val = f"{result.epoch} epochs on train and val"
            self._log(
                f"{self._stage}: {request.run}: {val}, {duration(epoch.seconds_total)}"
                f" ({finished} of {self._planned} runs finished)"
            )
        return self.interruption is not None

    def finish(self, request: TrialRequest, last: TrialEpoch | None) -> None:
        self._running.discard(request.run)  # its checkpoints show whether it has finished
        if self._on_finish:
            self._on_finish()

    def fail(self, request: TrialRequest, failure: TrialFailure) -> None:
        self._running.discard(request.run)
        if failure.kind in ("store", "storage"):  # every other run would fail as well
            self.interrupt(failure.reason)
            return
        if failure.kind == "out_of_memory" and self._can_have_more and request.share == 1:
            self._log(
                f"{self._stage}: {request.run} ran out of memory; retrying with the resources of two runs"
                f" ({failure.reason})"
            )
            self._waiting.insert(0, replace(request, share=2))
            return
        self.failures[request.run] = failure.reason

    def interrupt(self, reason: str) -> None:
        self._waiting = []
        self.interruption = self.interruption or reason
