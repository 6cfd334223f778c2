"""The ranking of a search's trials, kept in `leaderboard.json` while the search runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from dreamprvr_ray.search.layout import LEADERBOARD
from dreamprvr_ray.search.results import TrialRecord, rank_trials
from dreamprvr_ray.search.retention import CheckpointRetention
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage.files import write_text


class Leaderboard:
    """The trials of a study, ranked by their best val SumR."""

    def __init__(self, study: SearchStudy, directory: Path, retention: CheckpointRetention) -> None:
        """`directory` is where `leaderboard.json` is written."""
        self._study, self._directory, self._retention = study, directory, retention

    def trials(self) -> list[TrialRecord]:
        """Return all trials, best first, each with its checkpoint if that is kept."""
        return [self._with_checkpoint(trial) for trial in ranked_trials(self._study)]

    def write(self) -> None:
        """Write `leaderboard.json`."""
        entries = [trial.to_dict() for trial in self.trials()]
        write_text(self._directory / LEADERBOARD, json.dumps(entries, indent=1) + "\n")

    def _with_checkpoint(self, trial: TrialRecord) -> TrialRecord:
        checkpoint = self._retention.checkpoint(trial)
        return replace(trial, checkpoint=str(checkpoint)) if checkpoint else trial


def ranked_trials(study: SearchStudy) -> list[TrialRecord]:
    """Return all trials of a study, best first, without their checkpoints."""
    return rank_trials(TrialRecord.from_study(trial) for trial in study.trials())
