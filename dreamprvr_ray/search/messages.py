"""What the driver and its trials exchange through Ray Tune, as typed values.

Ray Tune carries flat dictionaries: a config to a trial, reports back. They are encoded and decoded here and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamprvr_ray.search.layout import trial_name
from dreamprvr_ray.training.failure import TrialFailure
from dreamprvr_ray.training.reporter import EpochResult

# Keys of a config in addition to the values', which all contain a dot.
TRIAL_NUMBER, SHARE, RUN = "trial_number", "share", "run"
# Keys that Ray Tune adds to every report, in seconds.
SECONDS_SINCE_REPORT, SECONDS_TOTAL = "time_this_iter_s", "time_total_s"


@dataclass(frozen=True)
class TrialRequest:
    """A training for a trial to run."""

    number: int  # Optuna's trial number, counted from 0
    share: int  # how many trials' resources it gets
    run: str  # name of its directory
    values: dict[str, Any]  # configuration values by dotted key

    @classmethod
    def for_trial(cls, number: int, values: dict[str, Any], share: int = 1) -> TrialRequest:
        """Return the request for a trial of the search, whose directory is named after its number."""
        return cls(number, share, trial_name(number), values)

    def to_config(self) -> dict[str, Any]:
        """Return Ray Tune's config of the trial. Experiment trackers show it as the trial's parameters."""
        config = self.values | {TRIAL_NUMBER: self.number, SHARE: self.share}
        return config if self.run == trial_name(self.number) else config | {RUN: self.run}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrialRequest:
        """Read what `to_config` returned."""
        number = config[TRIAL_NUMBER]
        values = {key: value for key, value in config.items() if "." in key}
        return cls(number, config[SHARE], config.get(RUN) or trial_name(number), values)


@dataclass(frozen=True)
class TrialEpoch:
    """A finished epoch of a trial, with the times that Ray Tune measured."""

    result: EpochResult
    seconds_since_report: float
    seconds_total: float  # since the trial started; Ray Tune counts from 0 again when a search is resumed

    def to_dict(self) -> dict[str, Any]:
        """Return the line of `epochs.jsonl`."""
        times = {SECONDS_SINCE_REPORT: self.seconds_since_report, SECONDS_TOTAL: self.seconds_total}
        return self.result.to_dict() | times


def decode_report(report: Mapping[str, Any] | None) -> TrialEpoch | TrialFailure | None:
    """Return what a trial reported: an epoch or a failure; None if it has reported neither yet."""
    if not report:
        return None
    if failure := TrialFailure.from_dict(report):
        return failure
    if "epoch" not in report:
        return None
    seconds_total = report.get(SECONDS_TOTAL, 0.0)
    return TrialEpoch(EpochResult.from_dict(report), report.get(SECONDS_SINCE_REPORT, seconds_total), seconds_total)
