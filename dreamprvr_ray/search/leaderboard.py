"""The trials of a search, ranked by their best val SumR, and the checkpoints of the best of them: all that stays on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from dreamprvr_ray.checkpoint_store import CheckpointStore
from dreamprvr_ray.checkpoints import METRICS, write_text
from dreamprvr_ray.search.layout import CHECKPOINTS, LEADERBOARD, RUNS, STATES, trial_name
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage import Storage

ENDED = ("finished", "pruned")  # states of trials that may have a checkpoint


@dataclass(frozen=True)
class Entry:
    """One trial. `number` counts from 0 in the order of proposal; SumR is of the val split."""

    number: int
    state: str  # finished, pruned, failed, running, waiting
    best_sumr: float | None
    best_epoch: int | None
    epochs: int
    values: dict[str, Any]
    last_sumr: float | None = None
    checkpoint: str | None = None
    error: str | None = None


def entry_of(trial: FrozenTrial) -> Entry:
    """A trial as the study knows it."""
    told, curve = trial.user_attrs, trial.intermediate_values
    best_epoch = told.get("best_epoch") or max(curve, key=lambda epoch: curve[epoch], default=None)
    best = told.get("best_SumR")
    if best is None and best_epoch is not None:
        best = curve[best_epoch]
    epochs = told.get("epochs") or max(curve, default=0)
    last = curve.get(epochs)
    reason = told.get("reason") if trial.state == TrialState.FAIL else None
    return Entry(trial.number, STATES[trial.state], best, best_epoch, epochs, dict(trial.params), last, error=reason)


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Best val SumR first; failed trials and those without any last, the earlier proposed first among equals."""

    def place(entry: Entry) -> tuple[bool, float, int]:
        sumr = float("-inf") if entry.best_sumr is None else entry.best_sumr
        return entry.state == "failed", -sumr, entry.number

    return sorted(entries, key=place)


class Leaderboard:
    """The ranked trials of a search, in OUT/leaderboard.json, and their checkpoints in OUT/runs, which `runs` is, wherever it is.

    Of the trials that have ended, the best `keep` have one checkpoint each, of their best epoch; the others have none.
    """

    def __init__(self, study: SearchStudy, keep: int, runs: Storage) -> None:
        self.study, self.keep, self.runs = study, keep, runs
        self._dropped: set[int] = set()  # trials that have no checkpoint any more
        self.kept_bytes = 0  # of the checkpoints, when they were looked at last

    def entries(self) -> list[Entry]:
        """All trials, best first, with the checkpoints that are kept."""
        entries = ranked(entry_of(trial) for trial in self.study.trials())
        return [replace(entry, checkpoint=str(kept)) if (kept := self.checkpoint(entry)) else entry for entry in entries]

    def checkpoint(self, entry: Entry) -> Storage | None:
        """The checkpoint of a trial's best epoch, None where it is not kept."""
        if entry.state not in ENDED or entry.number in self._dropped or entry.best_epoch is None:
            return None
        checkpoint = self._checkpoints(entry).at(entry.best_epoch)
        return checkpoint if checkpoint.exists(METRICS) else None

    def update(self) -> None:
        """Writes the file, and deletes the checkpoints that are not to be kept."""
        entries = ranked(entry_of(trial) for trial in self.study.trials())
        kept = [entry.number for entry in entries if entry.state in ENDED][: self.keep]
        for entry in entries:
            if entry.number in kept:
                self._keep_best(entry)
            elif entry.state not in ("running", "waiting") and entry.number not in self._dropped:
                (self.runs / trial_name(entry.number)).delete_directory(CHECKPOINTS)
                self._dropped.add(entry.number)
        write_text(self.study.out / LEADERBOARD, json.dumps([asdict(entry) for entry in self.entries()], indent=1) + "\n")
        self.kept_bytes = sum(checkpoint.size() for checkpoint in map(self.checkpoint, entries) if checkpoint)

    def sweep(self) -> None:
        """Deletes what no trial of the study owns, as a killed driver may leave it."""
        known = {trial_name(trial.number) for trial in self.study.trials()}
        for runs in (self.runs, Storage.of(self.study.out / RUNS)):  # one and the same, unless checkpoints are kept in a store
            for name in runs.names():
                if name not in known:
                    runs.delete_directory(name)
        self.update()

    def _keep_best(self, entry: Entry) -> None:
        checkpoints = self._checkpoints(entry)
        if entry.best_epoch is not None and entry.best_epoch in checkpoints.epochs():
            checkpoints.keep_only(entry.best_epoch)

    def _checkpoints(self, entry: Entry) -> CheckpointStore:
        return CheckpointStore(self.runs / trial_name(entry.number) / CHECKPOINTS)


def table(entries: Sequence[Entry], keys: Sequence[str]) -> list[str]:
    """The lines of a table of trials, with a column for each searched key's last word."""
    rows = [["trial", "state", "epochs", "SumR", "at", "last", *(key.rsplit(".", 1)[-1] for key in keys)]]
    for entry in entries:
        values = [_number(entry.values.get(key)) for key in keys]
        rows.append(
            [str(entry.number), entry.state, str(entry.epochs), _sumr(entry.best_sumr), str(entry.best_epoch or "-"), _sumr(entry.last_sumr), *values]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _sumr(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
