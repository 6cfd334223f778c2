"""The ranking of a search's trials, kept in `leaderboard.json` while the search runs.

With thousands of trials, it would be most of what a search writes if it were written whenever a trial ends. It is
written when the trials that keep a checkpoint change, before the checkpoints of others are deleted, so that every
checkpoint that it names exists. Other trials may have to wait for WRITE_SECONDS.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

from dreamprvr_ray.search.layout import LEADERBOARD
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.retention import CheckpointRetention
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage.files import write_text

WRITE_SECONDS = 30.0  # for which trials that have ended may be missing
MISSING_SHARE = 0.02  # of the ended trials that may be missing for so long


class Leaderboard:
    """The trials of a study, ranked by their best val SumR."""

    def __init__(self, study: SearchStudy, directory: Path, retention: CheckpointRetention) -> None:
        """`directory` is where `leaderboard.json` is written."""
        self._study, self._directory, self._retention = study, directory, retention
        self._written, self._written_at = 0, -math.inf  # how many ended trials it has, and since when

    def trials(self) -> list[TrialRecord]:
        """Return all trials, best first, each with its checkpoint if that is kept."""
        trials = self._study.ranked()
        best = self._retention.best(trials)
        return [self._with_checkpoint(trial) if trial.number in best else trial for trial in trials]

    def is_due(self, ended: int) -> bool:
        """Return whether `leaderboard.json` lacks too many of the `ended` trials, or lacks one for too long."""
        missing = ended - self._written
        is_late = time.monotonic() >= self._written_at + WRITE_SECONDS
        return missing > 0 and (is_late or missing >= MISSING_SHARE * ended)

    def write(self) -> None:
        """Write `leaderboard.json`."""
        trials = self.trials()
        entries = [trial.to_dict() for trial in trials]
        write_text(self._directory / LEADERBOARD, json.dumps(entries, indent=1) + "\n")
        self._written, self._written_at = sum(trial.has_ended for trial in trials), time.monotonic()

    def _with_checkpoint(self, trial: TrialRecord) -> TrialRecord:
        checkpoint = self._retention.checkpoint(trial)
        return replace(trial, checkpoint=str(checkpoint)) if checkpoint else trial
