"""The end of a search: publishing the selected checkpoint as `OUT/best`, and the outcome."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamprvr_ray.checkpoints.checkpoint import METRICS, copy_checkpoint_files
from dreamprvr_ray.checkpoints.layout import is_checkpoint_file
from dreamprvr_ray.data.collections import Collections
from dreamprvr_ray.data.locations import Locations
from dreamprvr_ray.evaluation.metrics import Evaluation, mean_evaluation
from dreamprvr_ray.evaluation.test_record import evaluate_tests_once
from dreamprvr_ray.search.final_evaluation import final_checkpoint
from dreamprvr_ray.search.final_result import FinalResult
from dreamprvr_ray.search.layout import BEST, FINAL_RUNS, VALUES
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.storage.files import write_json
from dreamprvr_ray.storage.location import Storage


@dataclass(frozen=True)
class SearchOutcome:
    """What a finished search found."""

    trials: list[TrialRecord]  # best first
    final: FinalResult | None  # None if nothing was retrained
    best: Storage  # the published checkpoint
    test: Evaluation  # of that checkpoint on test; the mean of `tests` if there are several
    tests: tuple[Evaluation, ...] = ()  # on each of several collections; empty for one


def publish_best_trial(
    session: SearchSession, trials: list[TrialRecord], best: TrialRecord, checkpoint: Storage
) -> SearchOutcome:
    """Publish the checkpoint of the best trial, and evaluate it on test unless that has been done before."""
    published = publish(checkpoint, best.values, session.storage)
    tests = session.compute(_evaluate, published, session.shards)
    return SearchOutcome(trials, None, published, mean_evaluation(tests), tests if len(tests) > 1 else ())


def publish_final(session: SearchSession, trials: list[TrialRecord], final: FinalResult) -> SearchOutcome:
    """Publish the best checkpoint of the best candidate, which has been evaluated on test."""
    best = final.candidates[0]
    checkpoint = final_checkpoint(session.storage / FINAL_RUNS, final.chosen)
    published = publish(checkpoint, best.values, session.storage)
    return SearchOutcome(trials, final, published, final.chosen.test, final.chosen.tests)


def _evaluate(checkpoint: Storage, shards: Locations) -> tuple[Evaluation, ...]:
    return evaluate_tests_once(checkpoint, Collections.open(shards))


def publish(checkpoint: Storage, values: dict[str, Any], search_storage: Storage) -> Storage:
    """Copy a checkpoint with its values to `best/`, and return its location.

    If the same checkpoint is already published it is not replaced, because its directory contains the test record.
    Another one is replaced with its test record; whatever else a user has put into `best/` stays.
    """
    best = search_storage / BEST
    if best.exists(METRICS) and best.read_text(METRICS) == checkpoint.read_text(METRICS):
        return best
    with checkpoint.local_directory() as source:

        def write(directory: Path) -> None:
            copy_checkpoint_files(source, directory)
            write_json(directory / VALUES, values)

        search_storage.write_directory(BEST, write, METRICS, is_checkpoint_file)
    return best
