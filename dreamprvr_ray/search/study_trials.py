"""Running a study's trials: the study proposes them and records how they ended."""

from __future__ import annotations

import time

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.layout import RUNS
from dreamprvr_ray.search.leaderboard import Leaderboard, ranked_trials
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest
from dreamprvr_ray.search.retention import CheckpointRetention
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.training.failure import TrialFailure


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
        self._can_have_more, self._copy, self._log = session.plan.can_have_more, copy, session.log
        self._deadline = time.monotonic() + settings.hours * 3600 if settings.hours else None

    def next_request(self) -> TrialRequest | None:
        if self._is_stopping():
            return None
        known = self.study.proposals()
        request = self.study.propose()
        if request is not None and request.number >= known:
            if renamed := self.retention.set_aside(request.number):
                self._log(f"{RUNS}/{request.run} is of no trial of the study; renamed to {RUNS}/{renamed}")
            self._copy.try_push()  # so that a trial is known before its directory exists
        return request

    def is_exhausted(self) -> bool:
        # Not before the running trials have ended: one that runs out of memory is proposed again.
        return self._is_stopping() or self.study.is_done()

    def report(self, request: TrialRequest, epoch: TrialEpoch) -> bool:
        self.study.report(request.number, epoch)
        return not epoch.result.finished and self.study.should_prune(request.number, epoch.result.epoch)

    def finish(self, request: TrialRequest, last: TrialEpoch | None) -> None:
        if last is None:
            self.study.release(request.number)
        elif self.study.finish(request.number, last):
            self._after_trial()

    def fail(self, request: TrialRequest, failure: TrialFailure) -> None:
        number = request.number
        if failure.kind == "store":  # every other trial would fail as well; this one resumes with the search
            self.study.release(number)
            self.store_failure = failure.reason
            return
        if (
            failure.kind == "out_of_memory"
            and self._can_have_more
            and self.study.retry_with_more_memory(number, failure.reason)
        ):
            self._log(f"trial {number} ran out of memory; retrying with the resources of two trials ({failure.reason})")
            return
        self.study.fail(number, failure.reason)
        self._log(f"trial {number} failed: {failure.reason}")
        self._after_trial()

    def delete_leftovers(self) -> None:
        """Delete the checkpoints that a killed driver may have left behind, and write the leaderboard.

        Raises `UserError` if the study does not know the trials in the search's directory.
        """
        self.retention.check_study(ranked_trials(self.study), self.study.search.name)
        self._rank()

    def _is_stopping(self) -> bool:
        is_late = self._deadline is not None and time.monotonic() > self._deadline
        return is_late or self.store_failure is not None

    def _after_trial(self) -> None:
        if not self._copy.try_push():  # otherwise checkpoints that the stored study still refers to could be deleted
            return
        try:
            self._rank()
        except UserError as error:  # of the object store
            self._log(f"{error}; will retry when the next trial ends")
        self._copy.try_push()

    def _rank(self) -> None:
        self.retention.delete_unranked_checkpoints(ranked_trials(self.study))
        self.leaderboard.write()
