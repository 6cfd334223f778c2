"""Which settings a search retrains: its best trials', their ablations, and the paper's. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dreamprvr_ray.search.final_result import PAPER, Candidate
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.settings import FinalSettings
from dreamprvr_ray.search.space import Search


def choose_candidates(search: Search, trials: Sequence[TrialRecord]) -> list[Candidate]:
    """Choose the settings to retrain from the ranked trials.

    These are the best `final.top` trials, the best one's ablations, and the paper's settings. Finished trials are
    preferred to pruned ones. An ablation is skipped if the trial already uses the paper's value.
    """
    final = final_settings(search)
    proposed = [trial for trial in trials if trial.number != 0 and trial.best_sumr is not None]
    finished = [trial for trial in proposed if trial.state == "finished"] or proposed
    best = [
        Candidate(f"trial {trial.number}", trial.number, trial.values, trial.best_epoch or 1)
        for trial in finished[: final.top]
    ]
    paper_values = search.experiment.flat()
    ablations = [
        replace(
            candidate,
            name=f"{candidate.name} with the paper's {key}",
            values=candidate.values | {key: paper_values[key]},
            ablated=key,
        )
        for candidate in best[:1]
        for key in final.ablate
        if candidate.values.get(key, paper_values[key]) != paper_values[key]
    ]
    paper_trial = next(trial for trial in trials if trial.number == 0)
    paper_epoch = paper_trial.best_epoch or search.experiment.training.epochs
    return [*best, *ablations, Candidate(PAPER, 0, search.paper_setting, paper_epoch)]


def skipped_ablations(search: Search, candidates: Sequence[Candidate]) -> list[str]:
    """Return the keys of `final.ablate` for which there is no candidate."""
    return sorted(set(final_settings(search).ablate) - {candidate.ablated for candidate in candidates})


def run_values(search: Search, candidate: Candidate, seed: int) -> dict[str, Any]:
    """Return the values, by dotted key, of one training of a candidate."""
    values = candidate.values | {"training.seed": seed}
    if final_settings(search).with_val:
        # Val is trained on and cannot end the training: it lasts as long as the trial took to its best val SumR.
        values |= {"training.with_val": True, "training.epochs": candidate.best_epoch}
    return values


def final_settings(search: Search) -> FinalSettings:
    """Return the search's `final` section, which must be set."""
    assert search.settings.final is not None
    return search.settings.final
