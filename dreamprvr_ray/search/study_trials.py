"""Running a study's trials: the study proposes them and records how they ended."""

from __future__ import annotations

import re
import time
from contextlib import suppress

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.layout import RUNS, read_epochs, trial_name
from dreamprvr_ray.search.leaderboard import Leaderboard
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest
from dreamprvr_ray.search.retention import CheckpointRetention
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.training.failure import TrialFailure

RECORD_SECONDS = 60.0  # between two records of the time that a search has used, and at the end of each trial
MAX_ALIKE = 3  # failures for the same reason, without an epoch of any trial in between, that end the search


class StudyTrials:
    """The `TrialSource` of a search: trials from its study.

    When a trial ends, checkpoints that are no longer needed are deleted and the leaderboard is written.
    """

    def __init__(self, session: SearchSession, study: SearchStudy) -> None:
        settings, copy = session.search.settings, session.copy
        self.study = study
        self.retention = CheckpointRetention(session.storage, copy.path, settings.keep)
        self.leaderboard = Leaderboard(study, copy.path, self.retention)
        self.store_failure: str | None = None  # why the object store ended the search
        self.interruption: str | None = None  # another cause that no trial is to blame for
        self._kept: set[int] | None = None  # the trials that keep a checkpoint, as the leaderboard has them
        self._ended = 0  # trials, when the last one ended
        self._running: set[int] = set()
        self._suspects: list[tuple[TrialRequest, str]] = []  # failed alike, one after another, and not recorded yet
        self._can_have_more, self._copy, self._log = session.plan.can_have_more, copy, session.log
        self._started, self._recorded = time.monotonic(), 0.0
        self._used_before = study.seconds_used  # by earlier sessions
        self._limit = settings.hours * 3600 if settings.hours else None  # seconds after which no new trial starts

    def next_request(self) -> TrialRequest | None:
        if self._is_stopping():
            return None
        is_late = self._is_late()
        known = self.study.proposals()
        request = self.study.propose_interrupted() if is_late else self.study.propose()
        if request is None:
            if not self._running:
                self.settle()
            return None
        self._running.add(request.number)
        if request.number >= known:
            if renamed := self.retention.set_aside(request.number):
                self._log(f"{RUNS}/{request.run} is of no trial of the study; renamed to {RUNS}/{renamed}")
                self._copy.forget_run(f"{RUNS}/{request.run}")
            self._copy.try_push()  # so that a trial is known before its directory exists
        return request

    def is_exhausted(self) -> bool:
        # Not before the running trials have ended: one that runs out of memory is proposed again.
        return self._is_stopping() or self.study.is_done(without_new=self._is_late())

    def report(self, request: TrialRequest, epoch: TrialEpoch) -> bool:
        if self.interruption:
            return True
        self.settle()
        self._record_time()
        self.study.report(request.number, epoch)
        if self.leaderboard.is_due(self._ended):
            with suppress(UserError):  # of the object store; the leaderboard stays due
                self.leaderboard.write()
        return not epoch.result.finished and self.study.should_prune(request.number, epoch.result.epoch)

    def finish(self, request: TrialRequest, last: TrialEpoch | None) -> None:
        self._running.discard(request.number)
        if last is None or self.interruption:
            self.study.release(request.number)
        elif self.study.finish(request.number, last):
            self._after_trial()

    def fail(self, request: TrialRequest, failure: TrialFailure) -> None:
        number = request.number
        self._running.discard(number)
        # Every other trial would fail as well; this one resumes with the search.
        if failure.kind == "store":
            self.study.release(number)
            self.store_failure = failure.reason
        elif failure.kind == "storage":
            self.study.release(number)
            self.interrupt(failure.reason)
        elif self.interruption:
            self.study.release(number)
        elif (
            failure.kind == "out_of_memory"
            and self._can_have_more
            and self.study.retry_with_more_memory(number, failure.reason)
        ):
            self._log(f"trial {number} ran out of memory; retrying with the resources of two trials ({failure.reason})")
        elif failure.kind == "error":
            self._log(f"trial {number} failed: {failure.reason}")
            self._suspect(request, failure.reason)
        else:
            self._log(f"trial {number} failed: {failure.reason}")
            self._record_failure(number, failure.reason)

    def interrupt(self, reason: str) -> None:
        """End the search for a reason that is not a trial's own. All running trials stay open and can be resumed."""
        self.interruption = self.interruption or reason
        for request, _ in self._suspects:
            self.study.release(request.number)
        self._suspects = []

    def settle(self) -> None:
        """Record the failures of trials that have failed alike, since others do not: the cause is their own."""
        suspects, self._suspects = self._suspects, []
        for request, reason in suspects:
            self._record_failure(request.number, reason)

    def _suspect(self, request: TrialRequest, reason: str) -> None:
        """Keep a failure until it is known whose it is. Too many alike are their node's or the search's."""
        if self._suspects and _cause(*self._suspects[0]) != _cause(request, reason):
            self.settle()
        self._suspects.append((request, reason))
        if len(self._suspects) >= MAX_ALIKE:
            self.interrupt(f"{MAX_ALIKE} trials in a row failed for the same reason: {reason}")

    def _record_failure(self, number: int, reason: str) -> None:
        self.study.fail(number, reason)
        self._after_trial()

    def delete_leftovers(self) -> None:
        """Delete the checkpoints that a killed driver may have left behind, and write the leaderboard.

        Raises `UserError` if the study does not know the trials in the search's directory, or the log of the epochs of
        one that is to continue is damaged.
        """
        trials = self.study.ranked()
        running = [f"{RUNS}/{trial_name(trial.number)}" for trial in trials if trial.state == "running"]
        self._copy.fetch_runs(running)
        for run in running:
            read_epochs(self._copy.path / run)
        self.retention.check_study(trials, self.study.search.name)
        self.retention.look(trials)
        self._kept = None
        self._rank()

    def write_leaderboard(self) -> None:
        """Write the leaderboard, if that is possible: it may lack the trials that ended last."""
        with suppress(UserError, OSError):
            self.leaderboard.write()

    def _is_late(self) -> bool:
        return self._limit is not None and self._seconds_used() > self._limit

    def _seconds_used(self) -> float:
        return self._used_before + time.monotonic() - self._started

    def _record_time(self, every: float = RECORD_SECONDS) -> None:
        """Record the time that the search has used, for its limit when it is resumed."""
        if self._limit is not None and time.monotonic() - self._recorded >= every:
            self._recorded = time.monotonic()
            self.study.seconds_used = self._seconds_used()

    def _is_stopping(self) -> bool:
        return self.store_failure is not None or self.interruption is not None

    def _after_trial(self) -> None:
        self._record_time(every=0.0)
        try:
            self._rank()
        except UserError as error:  # of the object store
            self._log(f"{error}; will retry when the next trial ends")

    def _rank(self) -> None:
        trials = self.study.ranked()
        kept, self._ended = self.retention.best(trials), sum(trial.has_ended for trial in trials)
        if kept != self._kept or self.leaderboard.is_due(self._ended):
            self.leaderboard.write()
        # Otherwise checkpoints that the stored study and leaderboard still refer to could be deleted.
        if self._copy.try_push():
            self._kept = kept
            self.retention.delete_unranked_checkpoints(trials)


def _cause(request: TrialRequest, reason: str) -> str:
    """Return a reason without what differs between trials: its name and identifiers of processes."""
    return re.sub(r"\b[0-9a-f]{8,}\b|pid=\d+", "", reason.replace(request.run, ""))
