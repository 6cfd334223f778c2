"""Which settings a search retrains: its best trials', their ablations, and the configuration's own. Imports no Ray."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dreamprvr_ray.config import baseline_name
from dreamprvr_ray.search.final_result import PAPER, Candidate
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.seeds import SEED
from dreamprvr_ray.search.settings import FinalSettings
from dreamprvr_ray.search.space import Search


def choose_candidates(search: Search, trials: Sequence[TrialRecord]) -> list[Candidate]:
    """Choose the settings to retrain from the ranked trials.

    These are the best `final.top` trials, the best one's ablations, and the configuration's own settings. Finished
    trials are preferred to pruned ones. An ablation is skipped if the trial already uses the configuration's value.
    """
    final, baseline = final_settings(search), baseline_name(search.experiment)
    proposed = [trial for trial in trials if trial.number != 0 and trial.best_sumr is not None]
    finished = [trial for trial in proposed if trial.state == "finished"] or proposed
    planned = search.experiment.training.epochs

    def candidate(name: str, trial: TrialRecord, values: dict[str, Any], best_epoch: int, title: str) -> Candidate:
        epochs = epochs_with_val(trial, trials, planned)
        values = {key: value for key, value in values.items() if key != SEED}  # each of its runs has another one
        return Candidate(name, trial.number, values, best_epoch, title=title, share=trial.share, epochs_with_val=epochs)

    best = [
        candidate(f"trial {trial.number}", trial, trial.values, trial.best_epoch or 1, f"trial {trial.number}")
        for trial in finished[: final.top]
    ]
    own_values = search.experiment.flat()
    ablations = [
        replace(
            candidate,
            name=f"{candidate.name} with the paper's {key}",  # as in files of version 0.1.0
            values=candidate.values | {key: own_values[key]},
            ablated=key,
            title=f"{candidate.name} with {baseline.removesuffix(' settings')} {key}",
        )
        for candidate in best[:1]
        for key in final.ablate
        if candidate.values.get(key, own_values[key]) != own_values[key]
    ]
    first = next(trial for trial in trials if trial.number == 0)
    own = candidate(PAPER, first, search.paper_setting, first.best_epoch or planned, baseline)
    return [*best, *ablations, own]


def epochs_with_val(trial: TrialRecord, trials: Sequence[TrialRecord], planned: int) -> int:
    """Return for how many epochs to train a trial's settings on train and val, since no split is left to choose one.

    It is the trial's best epoch if that is known from a full training. A trial that was pruned or failed shows only how
    far it got: after two of nine epochs, the second is the best of two. Its settings are trained for as long as is
    typical in this search, which is the median best epoch of the finished trials, so that a difference between
    candidates does not come from a training that was cut short; and never for fewer epochs than its own best. Without
    any finished trial, they are trained for all `planned` epochs.
    """
    if trial.state == "finished" and trial.best_epoch:
        return trial.best_epoch
    known = [other.best_epoch for other in trials if other.state == "finished" and other.best_epoch]
    typical = round(statistics.median(known)) if known else planned
    return min(planned, max(typical, trial.best_epoch or 1))


def skipped_ablations(search: Search, candidates: Sequence[Candidate]) -> list[str]:
    """Return the keys of `final.ablate` for which there is no candidate."""
    return sorted(set(final_settings(search).ablate) - {candidate.ablated for candidate in candidates})


def run_values(search: Search, candidate: Candidate, seed: int) -> dict[str, Any]:
    """Return the values, by dotted key, of one training of a candidate."""
    values = candidate.values | {SEED: seed}
    if final_settings(search).with_val:
        # Val is trained on and cannot end the training.
        values |= {"training.with_val": True, "training.epochs": candidate.epochs_with_val or candidate.best_epoch}
    return values


def final_settings(search: Search) -> FinalSettings:
    """Return the search's `final` section, which must be set."""
    assert search.settings.final is not None
    return search.settings.final
