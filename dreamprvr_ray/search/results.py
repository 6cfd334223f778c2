"""The records of a search's trials, and their ranking.

This is the only schema of `leaderboard.json`: the search writes these records and the report reads them. Nothing here
imports Ray, PyTorch or Optuna. SumR is the sum of R@1, R@5, R@10 and R@100 in percent, 0 to 400.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

State = Literal["finished", "pruned", "failed", "running", "waiting"]
STATES: dict[str, State] = {  # by the name of Optuna's TrialState
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
Curve = tuple[tuple[int, float], ...]  # (epoch, val SumR), in order of epochs


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `number` counts from 0 in the order of proposal; every SumR is of the val split."""

    number: int
    state: State
    best_sumr: float | None
    best_epoch: int | None
    epochs: int  # finished so far
    values: dict[str, Any]  # proposed, by dotted key
    last_sumr: float | None = None
    checkpoint: str | None = None  # of the best epoch, None if it was not kept
    error: str | None = None  # why the trial failed
    curve: Curve = ()
    cost: float | None = None  # the value of the second objective
    seconds: float | None = None  # of training
    infeasible: bool = False  # breaks a constraint: proposed, but never trained
    share: int = 1  # how many trials' resources it needed

    @property
    def is_trained(self) -> bool:
        """Whether the trial finished or was pruned, which is when it may have a checkpoint."""
        return self.state in ("finished", "pruned")

    @property
    def has_ended(self) -> bool:
        """Whether the trial neither runs nor waits."""
        return self.state not in ("running", "waiting")

    def best_until(self, epoch: int) -> float | None:
        """Return the best SumR up to an epoch, or None if no epoch up to it is recorded."""
        return max((sumr for finished, sumr in self.curve if finished <= epoch), default=None)

    @classmethod
    def from_study(cls, trial: FrozenTrial, curve: Curve = ()) -> TrialRecord:
        """Convert an Optuna trial.

        `curve` replaces the study's intermediate values; a study with two objectives has none.
        """
        attributes, objectives = trial.user_attrs, trial.values or []
        curve = curve or finite_curve(trial.intermediate_values.items())
        best_epoch, best_sumr = attributes.get("best_epoch"), _finite(attributes.get("best_SumR"))
        if best_sumr is None and trial.state.name == "COMPLETE":
            best_sumr = _finite(objectives[0])
        if curve:
            top_epoch, top_sumr = max(curve, key=lambda point: (point[1], -point[0]))
            best_epoch = best_epoch or top_epoch
            best_sumr = top_sumr if best_sumr is None else best_sumr
        epochs = attributes.get("epochs") or (curve[-1][0] if curve else 0)
        return cls(
            number=trial.number,
            state=STATES[trial.state.name],
            best_sumr=best_sumr,
            best_epoch=best_epoch,
            epochs=epochs,
            values=dict(trial.params),
            last_sumr=dict(curve).get(epochs),
            error=attributes.get("reason") if trial.state.name == "FAIL" else None,
            curve=curve,
            cost=_finite(objectives[1]) if len(objectives) > 1 else None,
            seconds=_finite(attributes.get("seconds")),
            infeasible=bool(attributes.get("infeasible")),
            share=attributes.get("share", 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the trial's entry in `leaderboard.json`. The fields from `curve` on are not part of it."""
        return {
            "number": self.number,
            "state": self.state,
            "best_sumr": self.best_sumr,
            "best_epoch": self.best_epoch,
            "epochs": self.epochs,
            "values": self.values,
            "last_sumr": self.last_sumr,
            "checkpoint": self.checkpoint,
            "error": self.error,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> TrialRecord:
        """Read an entry of `leaderboard.json`. Keys that an earlier version did not write may be missing."""
        return cls(
            number=entry["number"],
            state=entry["state"],
            best_sumr=entry.get("best_sumr"),
            best_epoch=entry.get("best_epoch"),
            epochs=entry.get("epochs") or 0,
            values=dict(entry.get("values") or {}),
            last_sumr=entry.get("last_sumr"),
            checkpoint=entry.get("checkpoint"),
            error=entry.get("error"),
        )


def rank_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Sort by best SumR, highest first, and by number among equals. Trials that failed or have no SumR come last."""
    return sorted(trials, key=rank_key)


def rank_key(trial: TrialRecord) -> tuple[bool, float, int]:
    """Return the key by which `rank_trials` sorts."""
    return trial.state == "failed", math.inf if trial.best_sumr is None else -trial.best_sumr, trial.number


def best_trial(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the trial with the highest SumR, or None if no epoch has finished. Failed trials do not count."""
    candidates = (trial for trial in trials if trial.best_sumr is not None and trial.state != "failed")
    return min(candidates, key=rank_key, default=None)


def finite_curve(points: Iterable[tuple[int, float]]) -> Curve:
    """Return the points in order of epochs, without those whose SumR is not finite."""
    return tuple(sorted((int(epoch), float(sumr)) for epoch, sumr in points if math.isfinite(sumr)))


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
