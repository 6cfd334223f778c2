"""A search as the report presents it: its settings, parameters, trials and final result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.search.final_result import FinalRecord
from dreamprvr_ray.search.results import TrialRecord, best_trial, rank_trials

PAPER_PRESETS = ("tvr", "activitynet", "charades")


@dataclass(frozen=True)
class SearchRecord:
    """The state of a search on disk.

    `trials` are in the order of proposal, without infeasible proposals and those that have no values yet. The baseline
    is trial 0, which has the configuration's own values.
    """

    directory: Path
    name: str
    settings: dict[str, Any]  # the search's file
    experiment: dict[str, Any]  # the configuration of the baseline, nested
    parameters: tuple[SearchedParameter, ...]
    trials: tuple[TrialRecord, ...]
    infeasible: int  # proposals that violated a constraint
    objectives: tuple[str, ...]
    final: FinalRecord | None

    @cached_property
    def ranked(self) -> list[TrialRecord]:
        """The trials by val SumR, best first."""
        return rank_trials(self.trials)

    @property
    def best(self) -> TrialRecord | None:
        """The trial with the best val SumR."""
        return best_trial(self.trials)

    @property
    def scored(self) -> list[TrialRecord]:
        """The trials that have a val SumR."""
        return [trial for trial in self.trials if trial.best_sumr is not None]

    @property
    def trained(self) -> list[TrialRecord]:
        """The finished and pruned trials that have a val SumR."""
        return [trial for trial in self.scored if trial.is_trained]

    def in_state(self, *states: str) -> list[TrialRecord]:
        """Return the trials in any of the states."""
        return [trial for trial in self.trials if trial.state in states]

    def best_quarter(self) -> list[TrialRecord]:
        """Return the best quarter of the finished and pruned trials."""
        trained = rank_trials(self.trained)
        return trained[: math.ceil(len(trained) / 4)]

    @property
    def baseline(self) -> TrialRecord | None:
        """Trial 0, if it has a val SumR."""
        return next((trial for trial in self.scored if trial.number == 0), None)

    @property
    def finished_baseline(self) -> TrialRecord | None:
        """Trial 0, if it finished. Otherwise it trained for fewer epochs, and its val SumR compares with no other."""
        return self.baseline if self.baseline is not None and self.baseline.state == "finished" else None

    @property
    def unfinished_baseline(self) -> TrialRecord | None:
        """Trial 0, if it has a val SumR but did not finish."""
        return None if self.finished_baseline else self.baseline

    @property
    def baseline_title(self) -> str:
        """What tables call the configuration of trial 0: the presets hold the paper's, other files do not."""
        return "paper's configuration" if self._is_paper else "base configuration"

    @property
    def baseline_name(self) -> str:
        """What sentences call the configuration of trial 0."""
        return f"the {self.baseline_title}"

    @property
    def baseline_label(self) -> str:
        """A short form of `baseline_title` for table heads and legends."""
        return "paper" if self._is_paper else "base"

    @property
    def _is_paper(self) -> bool:
        return self.settings.get("config") in PAPER_PRESETS

    @property
    def epochs(self) -> int | None:
        """The number of epochs of a complete training."""
        epochs = self.experiment.get("training", {}).get("epochs")
        return int(epochs) if epochs else None
