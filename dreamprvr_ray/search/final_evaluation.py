"""The single evaluation of every retrained candidate on test, and the comparisons between them. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.evaluation.test_record import evaluate_test_once, recorded_ranks
from dreamprvr_ray.search.candidates import final_settings
from dreamprvr_ray.search.comparison import compare_on_test
from dreamprvr_ray.search.final_result import Candidate, Comparison, FinalResult, FinalRun
from dreamprvr_ray.search.layout import CHECKPOINTS
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.reporter import latest_result


def evaluate_candidates(
    search: Search, candidates: Sequence[Candidate], final_runs: Storage, shards: str
) -> FinalResult:
    """Evaluate the best checkpoint of every run in `final_runs` on test and compare the candidates.

    A checkpoint that was tested before is not tested again: the recorded result is used.
    """
    final = final_settings(search)
    tested: list[Candidate] = []
    ranks: dict[str, np.ndarray] = {}  # by name of the candidate: (seeds, Q)
    for candidate in candidates:
        runs = tuple(_evaluate_run(final_runs / candidate.run_name(seed), seed, shards) for seed in range(final.seeds))
        tested.append(replace(candidate, runs=runs))
        ranks[candidate.name] = np.array([recorded_ranks(final_checkpoint(final_runs, candidate, run)) for run in runs])
    if not final.with_val:  # otherwise val was trained on, and the order of the search stands
        tested.sort(key=lambda candidate: -(candidate.val_mean or 0.0))
    owner = local_shards(shards).split("test").owner

    def compare(better: Candidate, than: Candidate) -> Comparison:
        return compare_on_test(better.name, ranks[better.name], than.name, ranks[than.name], owner)

    paper = next(candidate for candidate in tested if candidate.is_paper)
    found = next((candidate for candidate in tested if not candidate.is_paper), None)
    unablated = {candidate.trial: candidate for candidate in tested if candidate.ablated is None}
    return FinalResult(
        candidates=tuple(tested),
        comparison=compare(found, paper) if found else None,
        ablations=tuple(
            compare(unablated[candidate.trial], candidate) for candidate in tested if candidate.ablated is not None
        ),
        with_val=final.with_val,
    )


def final_checkpoint(final_runs: Storage, candidate: Candidate, run: FinalRun) -> Storage:
    """Return the location of a run's best checkpoint in `final_runs`."""
    assert run.seed is not None and run.best_epoch is not None
    return CheckpointStore(final_runs / candidate.run_name(run.seed) / CHECKPOINTS).at(run.best_epoch)


def _evaluate_run(run: Storage, seed: int, shards: str) -> FinalRun:
    """Evaluate a run's best checkpoint on test, and delete its others."""
    checkpoints = CheckpointStore(run / CHECKPOINTS)
    latest = latest_result(checkpoints)
    assert latest is not None
    best = checkpoints.at(latest.best_epoch)
    test = evaluate_test_once(best, shards)
    checkpoints.keep_only(latest.best_epoch)
    return FinalRun(seed, latest.best_sumr, latest.best_epoch, str(best), test)
