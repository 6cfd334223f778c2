"""A search as the report presents it: its settings, parameters, trials and final result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreamprvr_ray.config import OWN_SETTINGS, Experiment, baseline_name, build_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report.parameters import SearchedParameter
from dreamprvr_ray.search.final_result import FinalRecord
from dreamprvr_ray.search.layout import SEARCH
from dreamprvr_ray.search.results import TrialRecord, best_trial, rank_trials
from dreamprvr_ray.search.seeds import shared_seeds

DETAILED = 100  # trials shown one by one; of more, charts show the best of them so, and the others together


@dataclass(frozen=True)
class FinalStage:
    """How far the retraining after a search is. The times are in seconds and summed over the runs."""

    planned: int  # runs
    finished: int
    running: int
    seconds: float
    is_evaluated: bool  # whether `final.json` holds the results of these runs

    @property
    def seconds_left(self) -> float | None:
        """Estimated time until the last run ends, if as many run at a time as now; None before a run has finished."""
        if not self.finished or self.finished == self.planned:
            return None
        # The running ones are half done on average.
        per_run = self.seconds / (self.finished + self.running / 2)
        return per_run * (self.planned - self.finished - self.running / 2) / max(1, self.running)


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
    final_stage: FinalStage | None = None  # None before it begins, and for searches of version 0.1.0

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

    @cached_property
    def detailed(self) -> frozenset[int]:
        """The numbers of the trials that are shown one by one: the best ones, those that train now, and trial 0."""
        running = [trial.number for trial in self.trials if trial.state == "running"][:DETAILED]
        return frozenset([0, *(trial.number for trial in self.ranked[:DETAILED]), *running])

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
        """What tables call the configuration of trial 0: the paper's settings only if it has their values."""
        return self.baseline_name.removeprefix("the ")

    @cached_property
    def baseline_name(self) -> str:
        """What sentences call the configuration of trial 0."""
        return baseline_name(self._configuration) if self._configuration else OWN_SETTINGS

    @property
    def baseline_label(self) -> str:
        """A short form of `baseline_title` for table heads and legends."""
        return "configuration" if self.baseline_name == OWN_SETTINGS else "paper"

    @cached_property
    def _configuration(self) -> Experiment | None:
        try:
            return build_experiment(self.experiment, SEARCH)
        except UserError:  # of another version
            return None

    @property
    def shared_seeds(self) -> tuple[int, ...]:
        """Seeds of the final runs that trials had too: such runs favour the trial that the search selected."""
        if self.final is None or not self.final.result.retrained:
            return ()
        runs = [run.seed for candidate in self.final.result.candidates for run in candidate.runs]
        seed = self.experiment.get("training", {}).get("seed", 0)
        return shared_seeds(runs, seed, [trial.values for trial in self.trials])

    @property
    def epochs(self) -> int | None:
        """The number of epochs of a complete training."""
        epochs = self.experiment.get("training", {}).get("epochs")
        return int(epochs) if epochs else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time until the last trial ends, if as many run at a time as now; None if it cannot be estimated."""
        planned, running = int(self.settings.get("trials") or 0), self.in_state("running")
        ended = [trial.seconds for trial in self.in_state("finished", "pruned") if trial.seconds]
        missing = planned - len(self.in_state("finished", "pruned", "failed"))
        if not ended or not running or missing <= 0:
            return None
        per_trial = sum(ended) / len(ended)
        # The running ones are half done on average.
        return per_trial * max(0.5, missing - len(running) / 2) / len(running)
