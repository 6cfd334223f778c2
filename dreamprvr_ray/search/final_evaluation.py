"""The single evaluation of every retrained candidate on test, and the comparisons between them. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.data.collections import Collections
from dreamprvr_ray.data.locations import Locations
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.metrics import ENCODER, mean_evaluation
from dreamprvr_ray.evaluation.test_record import evaluate_tests_once, recorded_ranks
from dreamprvr_ray.evaluation.zero_shot import zero_shot
from dreamprvr_ray.search.candidates import final_settings
from dreamprvr_ray.search.comparison import RanksOnTest, compare_on_tests
from dreamprvr_ray.search.final_result import ENCODER_ALONE, Candidate, Comparison, FinalResult, FinalRun
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
    shards: Locations,
) -> FinalResult:
    """Evaluate the best checkpoint of every run on test and compare the candidates.

    `planned` are the runs, whose directories are in `final_runs`; `trials` are those of the search. A checkpoint that
    was tested before is not tested again: the recorded result is used. With several collections, each is tested.
    """
    final, collections = final_settings(search), Collections.open(shards)
    tested: list[Candidate] = []
    ranks: dict[str, list[np.ndarray]] = {}  # by name of the candidate: (seeds, Q) of each collection
    for candidate in candidates:
        runs = tuple(evaluate_run(final_runs, run, shards) for run in planned if run.candidate == candidate.name)
        tested.append(replace(candidate, runs=runs))
        ranks[candidate.name] = ranks_on_each(final_runs, runs, collections)
    if not final.with_val:  # otherwise val was trained on, and the order of the search stands
        tested.sort(key=lambda candidate: -(candidate.val_mean or 0.0))
    tests = [part.split("test") for part in collections.parts]
    owners = [test.owner for test in tests]

    def on_each(better: Candidate, than: Candidate) -> list[RanksOnTest]:
        return [RanksOnTest(*each) for each in zip(ranks[better.name], ranks[than.name], owners, strict=True)]

    def compare(better: Candidate, than: Candidate) -> Comparison:
        return compare_on_tests(better.name, than.name, on_each(better, than))

    encoder: list[np.ndarray | None] = []  # ranks (Q,) on each collection
    if all(part.one_encoder for part in collections.parts):
        encoder = [zero_shot(test, best_device())[ENCODER].ranks for test in tests]

    def compare_with_encoder(candidate: Candidate) -> Comparison:
        """The encoder's ranks do not depend on a seed, so only the candidate's seeds count in the interval."""
        each = zip(ranks[candidate.name], encoder, owners, strict=True)
        tested = [RanksOnTest(own, np.array([alone] * len(own)), owner) for own, alone, owner in each]
        return compare_on_tests(candidate.name, ENCODER_ALONE, tested)

    paper = next(candidate for candidate in tested if candidate.is_paper)
    found = next((candidate for candidate in tested if not candidate.is_paper), None)
    unablated = {candidate.trial: candidate for candidate in tested if candidate.ablated is None}
    return FinalResult(
        candidates=tuple(tested),
        comparison=compare(found, paper) if found else None,
        ablations=tuple(
            compare(unablated[candidate.trial], candidate) for candidate in tested if candidate.ablated is not None
        ),
        encoder=tuple(map(compare_with_encoder, tested)) if encoder else (),
        with_val=final.with_val,
        shared_seeds=shared_seeds(
            [run.seed for run in planned], search.experiment.training.seed, [trial.values for trial in trials]
        ),
        by_collection=tuple(
            replace(compare_on_tests(found.name, paper.name, [own]), collection=name)
            for name, own in zip(collections.names, on_each(found, paper) if found else (), strict=False)
            if found is not None and len(collections.names) > 1
        ),
    )


def final_checkpoint(final_runs: Storage, run: FinalRun) -> Storage:
    """Return the location of a run's best checkpoint in `final_runs`."""
    assert run.directory is not None and run.best_epoch is not None
    return CheckpointStore(final_runs / run.directory / CHECKPOINTS).at(run.best_epoch)


def ranks_on_each(final_runs: Storage, runs: Sequence[FinalRun], collections: Collections) -> list[np.ndarray]:
    """Return the recorded ranks of tested runs (seeds, Q) on each collection."""
    checkpoints = [final_checkpoint(final_runs, run) for run in runs]
    return [
        np.array([_ranks(checkpoint, name, len(part.split("test").owner)) for checkpoint in checkpoints])
        for name, part in zip(collections.names, collections.parts, strict=True)
    ]


def _ranks(checkpoint: Storage, collection: str, queries: int) -> list[int]:
    """Return a checkpoint's recorded ranks on test. Raises `UserError` unless there is one for each query."""
    ranks = recorded_ranks(checkpoint, collection)
    if len(ranks) != queries:
        raise UserError(f"{checkpoint}: damaged: its recorded ranks on test are {len(ranks)}, not {queries}")
    return ranks


def evaluate_run(final_runs: Storage, planned: PlannedRun, shards: Locations) -> FinalRun:
    """Evaluate a run's best checkpoint on test, and delete its others."""
    directory = planned.request.run
    checkpoints = CheckpointStore(final_runs / directory / CHECKPOINTS)
    latest = latest_result(checkpoints)
    assert latest is not None
    best = checkpoints.at(latest.best_epoch)
    tests = evaluate_tests_once(best, Collections.open(shards))
    checkpoints.keep_only(latest.best_epoch)
    return FinalRun(
        planned.seed,
        latest.best_sumr,
        latest.best_epoch,
        str(best),
        mean_evaluation(tests),
        directory,
        tests if len(tests) > 1 else (),
    )
