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
from dreamprvr_ray.search.final_runs import PlannedRun
from dreamprvr_ray.search.layout import CHECKPOINTS
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.seeds import shared_seeds
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.reporter import latest_result


def evaluate_candidates(
    search: Search,
    candidates: Sequence[Candidate],
    planned: Sequence[PlannedRun],
    trials: Sequence[TrialRecord],
    final_runs: Storage,
    shards: str,
) -> FinalResult:
    """Evaluate the best checkpoint of every run on test and compare the candidates.

    `planned` are the runs, whose directories are in `final_runs`; `trials` are those of the search. A checkpoint that
    was tested before is not tested again: the recorded result is used.
    """
    final = final_settings(search)
    tested: list[Candidate] = []
    ranks: dict[str, np.ndarray] = {}  # by name of the candidate: (seeds, Q)
    for candidate in candidates:
        runs = tuple(evaluate_run(final_runs, run, shards) for run in planned if run.candidate == candidate.name)
        tested.append(replace(candidate, runs=runs))
        ranks[candidate.name] = np.array([recorded_ranks(final_checkpoint(final_runs, run)) for run in runs])
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
        shared_seeds=shared_seeds(
            [run.seed for run in planned], search.experiment.training.seed, [trial.values for trial in trials]
        ),
    )


def final_checkpoint(final_runs: Storage, run: FinalRun) -> Storage:
    """Return the location of a run's best checkpoint in `final_runs`."""
    assert run.directory is not None and run.best_epoch is not None
    return CheckpointStore(final_runs / run.directory / CHECKPOINTS).at(run.best_epoch)


def evaluate_run(final_runs: Storage, planned: PlannedRun, shards: str) -> FinalRun:
    """Evaluate a run's best checkpoint on test, and delete its others."""
    directory = planned.request.run
    checkpoints = CheckpointStore(final_runs / directory / CHECKPOINTS)
    latest = latest_result(checkpoints)
    assert latest is not None
    best = checkpoints.at(latest.best_epoch)
    test = evaluate_test_once(best, shards)
    checkpoints.keep_only(latest.best_epoch)
    return FinalRun(planned.seed, latest.best_sumr, latest.best_epoch, str(best), test, directory)
