"""Which checkpoints of a search are deleted, and when.

Of the trials that have finished or were pruned, the best `keep` keep the checkpoint of their best epoch; the others
keep none. A running trial keeps its best and its latest checkpoint, from which it resumes: see `CheckpointStore`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dreamprvr_ray.checkpoints.checkpoint import METRICS
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.search.layout import CHECKPOINTS, RUNS, trial_name
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.storage.location import Storage


class CheckpointRetention:
    """Deletes the checkpoints of a search's trials that are no longer needed."""

    def __init__(self, search_storage: Storage, working_copy: Path, keep: int) -> None:
        """`search_storage` holds the checkpoints, `working_copy` the trials' other files. On a disk both are one."""
        self._runs, self._working_copy, self._keep = search_storage / RUNS, Storage.of(working_copy / RUNS), keep
        self._emptied: set[int] = set()  # trials whose checkpoints have been deleted
        self.stored_bytes = 0  # of the kept checkpoints, after the last deletion

    def checkpoint(self, trial: TrialRecord) -> Storage | None:
        """Return the checkpoint of a trial's best epoch, or None if it is not kept."""
        if not trial.is_trained or trial.number in self._emptied or trial.best_epoch is None:
            return None
        checkpoint = self._store(trial).at(trial.best_epoch)
        return checkpoint if checkpoint.exists(METRICS) else None

    def delete_unranked_checkpoints(self, ranked: Sequence[TrialRecord]) -> None:
        """Delete the checkpoints of all ended trials but the best `keep`, and of these all but the best epoch's.

        `ranked` are all trials of the search, best first.
        """
        best = [trial.number for trial in ranked if trial.is_trained][: self._keep]
        for trial in ranked:
            if trial.number in best:
                self._delete_other_epochs(trial)
            elif trial.state not in ("running", "waiting") and trial.number not in self._emptied:
                (self._runs / trial_name(trial.number)).delete_directory(CHECKPOINTS)
                self._emptied.add(trial.number)
        self.stored_bytes = sum(checkpoint.size() for trial in ranked if (checkpoint := self.checkpoint(trial)))

    def delete_orphans(self, trials: Iterable[TrialRecord]) -> None:
        """Delete the directories of trials that the study does not know, which a killed driver may leave behind."""
        known = {trial_name(trial.number) for trial in trials}
        for runs in (self._runs, self._working_copy):
            for name in runs.names():
                if name not in known:
                    runs.delete_directory(name)

    def _delete_other_epochs(self, trial: TrialRecord) -> None:
        store = self._store(trial)
        if trial.best_epoch is not None and trial.best_epoch in store.epochs():
            store.keep_only(trial.best_epoch)

    def _store(self, trial: TrialRecord) -> CheckpointStore:
        return CheckpointStore(self._runs / trial_name(trial.number) / CHECKPOINTS)
