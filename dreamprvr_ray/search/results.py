"""The records of a search: its trials, final trainings and comparisons. Imports no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from dreamprvr_ray.search.layout import STATES

RESAMPLES = 10_000
CONFIDENCE = 0.95
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


def table(entries: Sequence[Entry], keys: Sequence[str]) -> list[str]:
    """The lines of a table of trials, with a column for each searched key's last word."""
    rows = [["trial", "state", "epochs", "SumR", "at", "last", *(key.rsplit(".", 1)[-1] for key in keys)]]
    for entry in entries:
        values = [_number(entry.values.get(key)) for key in keys]
        rows.append(
            [
                str(entry.number),
                entry.state,
                str(entry.epochs),
                _sumr(entry.best_sumr),
                str(entry.best_epoch or "-"),
                _sumr(entry.last_sumr),
                *values,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _sumr(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class FinalRun:
    """One training of a candidate: what val chose, and the one reading of test. SumR in percent, summed over four ranks."""

    seed: int
    val_SumR: float
    best_epoch: int
    checkpoint: str
    test: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Values that were trained with several seeds; `mean` and `std` are of test SumR over the seeds."""

    name: str  # "trial 5", "trial 5 with the paper's model.registers", or "paper"
    trial: int
    values: dict[str, Any]
    best_epoch: int  # of its trial in the search
    runs: list[FinalRun] = field(default_factory=list)
    mean: float = float("nan")
    std: float = float("nan")
    ablated: str | None = None  # the one key whose value is the paper's in place of the trial's

    @property
    def val_mean(self) -> float:
        """Mean over the seeds of the best val SumR: what chooses among candidates."""
        return float(np.mean([run.val_SumR for run in self.runs]))


@dataclass(frozen=True)
class Comparison:
    """By how much test SumR of one candidate exceeds another's, and the interval that resampled videos and seeds leave for it."""

    better: str
    than: str
    difference: float
    interval: tuple[float, float]
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class FinalResult:
    """All candidates, the one that val chose first.

    `comparison` is of the best one found with the paper's setting, None where none was; `ablations` are of a trial with itself, ablated.
    """

    candidates: list[Candidate]
    comparison: Comparison | None
    ablations: list[Comparison] = field(default_factory=list)
    with_val: bool = False  # val was learnt from: its SumR says nothing

    @property
    def chosen(self) -> FinalRun:
        """The first candidate's best training by val; its first one where val was learnt from."""
        runs = self.candidates[0].runs
        return runs[0] if self.with_val else max(runs, key=lambda run: run.val_SumR)

    def lines(self) -> list[str]:
        """For a person."""
        lines = []
        for each in self.candidates:
            seeds = f"{len(each.runs)} seeds" if len(each.runs) > 1 else "1 seed"
            val = "trained on val too" if self.with_val else f"val {each.val_mean:.1f}"
            lines.append(f"{each.name}: test SumR {each.mean:.1f} (standard deviation {each.std:.1f}, {seeds}), {val}")
        for told in ([self.comparison] if self.comparison else []) + self.ablations:
            low, high = told.interval
            lines.append(
                f"{told.better} against {told.than}: {told.difference:+.1f} test SumR"
                f" ({told.confidence:.0%} interval {low:+.1f} to {high:+.1f}, videos and seeds resampled)"
            )
        if self.candidates[0].name == "paper" and not self.with_val:
            lines.append("val prefers the paper's setting to what the search found")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """By the names of `final.json`."""
        return {
            "candidates": [asdict(each) for each in self.candidates],
            "comparison": asdict(self.comparison) if self.comparison else None,
            "ablations": [asdict(each) for each in self.ablations],
        }
