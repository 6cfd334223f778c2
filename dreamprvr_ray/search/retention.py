"""The trials of a search, ranked by their best val SumR, and the checkpoints of the best of them: all that stays on the disk."""

from __future__ import annotations

import json
from dataclasses import replace

from dreamprvr_ray.checkpoints.checkpoint import METRICS
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.search.layout import CHECKPOINTS, LEADERBOARD, RUNS, trial_name
from dreamprvr_ray.search.results import TrialRecord, rank_trials
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage.files import write_text
from dreamprvr_ray.storage.location import Storage


class Leaderboard:
    """The ranked trials of a search, in OUT/leaderboard.json, and their checkpoints in OUT/runs, which `runs` is, wherever it is.

    Of the trials that have ended, the best `keep` have one checkpoint each, of their best epoch; the others have none.
    """

    def __init__(self, study: SearchStudy, keep: int, runs: Storage) -> None:
        self.study, self.keep, self.runs = study, keep, runs
        self._dropped: set[int] = set()  # trials that have no checkpoint any more
        self.kept_bytes = 0  # of the checkpoints, when they were looked at last

    def entries(self) -> list[TrialRecord]:
        """All trials, best first, with the checkpoints that are kept."""
        entries = rank_trials(TrialRecord.from_study(trial) for trial in self.study.trials())
        return [
            replace(entry, checkpoint=str(kept)) if (kept := self.checkpoint(entry)) else entry for entry in entries
        ]

    def checkpoint(self, entry: TrialRecord) -> Storage | None:
        """The checkpoint of a trial's best epoch, None where it is not kept."""
        if not entry.is_trained or entry.number in self._dropped or entry.best_epoch is None:
            return None
        checkpoint = self._checkpoints(entry).at(entry.best_epoch)
        return checkpoint if checkpoint.exists(METRICS) else None

    def update(self) -> None:
        """Writes the file, and deletes the checkpoints that are not to be kept."""
        entries = rank_trials(TrialRecord.from_study(trial) for trial in self.study.trials())
        kept = [entry.number for entry in entries if entry.is_trained][: self.keep]
        for entry in entries:
            if entry.number in kept:
                self._keep_best(entry)
            elif entry.state not in ("running", "waiting") and entry.number not in self._dropped:
                (self.runs / trial_name(entry.number)).delete_directory(CHECKPOINTS)
                self._dropped.add(entry.number)
        write_text(
            self.study.out / LEADERBOARD, json.dumps([entry.to_dict() for entry in self.entries()], indent=1) + "\n"
        )
        self.kept_bytes = sum(checkpoint.size() for checkpoint in map(self.checkpoint, entries) if checkpoint)

    def sweep(self) -> None:
        """Deletes what no trial of the study owns, as a killed driver may leave it."""
        known = {trial_name(trial.number) for trial in self.study.trials()}
        for runs in (
            self.runs,
            Storage.of(self.study.out / RUNS),
        ):  # one and the same, unless checkpoints are kept in a store
            for name in runs.names():
                if name not in known:
                    runs.delete_directory(name)
        self.update()

    def _keep_best(self, entry: TrialRecord) -> None:
        checkpoints = self._checkpoints(entry)
        if entry.best_epoch is not None and entry.best_epoch in checkpoints.epochs():
            checkpoints.keep_only(entry.best_epoch)

    def _checkpoints(self, entry: TrialRecord) -> CheckpointStore:
        return CheckpointStore(self.runs / trial_name(entry.number) / CHECKPOINTS)
