"""Which checkpoints of a search are deleted, and when.

Of the trials that have finished or were pruned, the best `keep` keep the checkpoint of their best epoch; the others
keep none. A running trial keeps its best and its latest checkpoint, from which it resumes: see `CheckpointStore`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT, METRICS
from dreamprvr_ray.checkpoints.store import WRITER, CheckpointStore
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.layout import CHECKPOINTS, RUNS, trial_name
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.storage.location import Storage

TRIAL_NAME = re.compile(r"trial_\d{3,}")
_AT_A_TIME = 16  # trials whose checkpoints are deleted at a time


class CheckpointRetention:
    """Deletes the checkpoints of a search's trials that are no longer needed."""

    def __init__(self, search_storage: Storage, working_copy: Path, keep: int) -> None:
        """`search_storage` holds the checkpoints, `working_copy` the trials' other files. On a disk both are one."""
        self._runs, self._working_copy, self._keep = search_storage / RUNS, Storage.of(working_copy / RUNS), keep
        self._emptied: set[int] = set()  # trials whose checkpoints have been deleted
        self._kept: dict[int, int] = {}  # trials that have been reduced to one checkpoint, and its size in bytes

    @property
    def stored_bytes(self) -> int:
        """The size of the kept checkpoints after the last deletion."""
        return sum(self._kept.values())

    def best(self, ranked: Sequence[TrialRecord]) -> set[int]:
        """Return the numbers of the trials that keep a checkpoint, of all trials of the search, best first."""
        return set(itertools.islice((trial.number for trial in ranked if trial.is_trained), self._keep))

    def checkpoint(self, trial: TrialRecord) -> Storage | None:
        """Return the checkpoint of a trial's best epoch, or None if it is not kept."""
        if not trial.is_trained or trial.number in self._emptied or trial.best_epoch is None:
            return None
        checkpoint = self._store(trial).at(trial.best_epoch)
        return checkpoint if trial.number in self._kept or checkpoint.exists(METRICS) else None

    def look(self, ranked: Sequence[TrialRecord]) -> None:
        """Find out which trials have checkpoints: other processes may have written some."""
        names = {name.partition("/")[0] for name in self._runs.files() if name.split("/")[1:2] == [CHECKPOINTS]}
        self._emptied = {trial.number for trial in ranked if trial.has_ended and trial_name(trial.number) not in names}
        self._kept = {}

    def delete_unranked_checkpoints(self, ranked: Sequence[TrialRecord]) -> None:
        """Delete the checkpoints of all ended trials but the best `keep`, and of these all but the best epoch's.

        `ranked` are all trials of the search, best first.
        """
        best = self.best(ranked)
        self._kept = {number: size for number, size in self._kept.items() if number in best}
        done = self._emptied | self._kept.keys()
        trials = [trial for trial in ranked if trial.has_ended and trial.number not in done]
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="retention") as pool:
            list(pool.map(lambda trial: self._reduce(trial) if trial.number in best else self._empty(trial), trials))

    def check_study(self, trials: Sequence[TrialRecord], search: str) -> None:
        """Raise `UserError` if there are directories of trials, but the study of the search `search` has no trial.

        Then the study is lost or another one; only the directories remain of the search.
        """
        names = [] if trials else self._runs.names()
        names = [name for name in names if TRIAL_NAME.fullmatch(name) and self._runs.exists(f"{name}/{EXPERIMENT}")]
        if names:
            raise UserError(
                f"{self._runs}: holds {len(names)} trials, but the study '{search}' has none; nothing was deleted:"
                " restore the study, or start a new search with another --out"
            )

    def set_aside(self, number: int) -> str | None:
        """Rename the directory that a new trial would get, if there is one; return its new name.

        It is of a trial that the study has lost, as with a damaged end of its file, or a user's. The new trial must not
        resume from its checkpoints.
        """
        name = trial_name(number)
        if not self._runs.exists(f"{name}/{EXPERIMENT}"):
            return None
        taken = self._runs.names()
        other = next(new for new in (f"{name}-lost-{count}" for count in itertools.count(1)) if new not in taken)
        self._runs.rename_directory(name, other)
        self._working_copy.rename_directory(name, other)
        return other

    def _empty(self, trial: TrialRecord) -> None:
        self._store(trial).delete_all()
        (self._runs / trial_name(trial.number)).delete_directory(CHECKPOINTS, lambda name: name == WRITER)
        self._emptied.add(trial.number)

    def _reduce(self, trial: TrialRecord) -> None:
        store = self._store(trial)
        if trial.best_epoch is not None and trial.best_epoch in store.epochs():
            store.keep_only(trial.best_epoch)
            self._kept[trial.number] = store.at(trial.best_epoch).size()

    def _store(self, trial: TrialRecord) -> CheckpointStore:
        return CheckpointStore(self._runs / trial_name(trial.number) / CHECKPOINTS)
