"""Evaluation of checkpoints. Every evaluation on test is recorded with the checkpoint.

CHECKPOINT/test.json         one record per evaluation on test
CHECKPOINT/test_ranks.json   ranks of the queries' videos at an evaluation on test, in the split's order
CHECKPOINT/test_ranks-NAME.json   the same for each further collection; the first has `test_ranks.json`

The record is written first and the ranks after it, so that ranks never exist without the reading that they come from.
If the program is killed in between, the ranks are missing and the reading is on record: whoever needs the ranks reads
test once more, as a further recorded reading. Earlier versions wrote the ranks first: ranks without a record are
counted as a reading.

A record is added under the directory's lock, so that of several evaluations at once, on several machines too, each
leaves its record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from dreamprvr_ray.checkpoints.checkpoint import TrainedModel
from dreamprvr_ray.checkpoints.layout import METRICS, TEST_RANKS, TEST_RECORD, further_ranks
from dreamprvr_ray.checkpoints.locate import load_trained_model
from dreamprvr_ray.data.collections import Collections, check_different_collections
from dreamprvr_ray.data.finite import find_not_finite
from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.data.overlaps import SharedCaptions
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.data.shards_record import PROTOCOLS
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.evaluation.metrics import ENCODER, Evaluation, Reading, TrainingOverlap
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.evaluation.own_moments import OwnMoments
from dreamprvr_ray.evaluation.query_results import TOP, QueryResult, query_results
from dreamprvr_ray.evaluation.ranks import summarise
from dreamprvr_ray.evaluation.retrieval import ScoresNotFinite, SplitRanks, rank_split, score_split
from dreamprvr_ray.evaluation.training_overlap import compare_with_training, training_collections
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.evaluation.zero_shot import zero_shot
from dreamprvr_ray.storage.files import parse_json, reserved_room
from dreamprvr_ray.storage.location import Storage

LOCK_SECONDS = 60.0  # how long a record waits for others, which take milliseconds each
RECORD_BYTES, RANK_BYTES = 2**16, 12  # of a record and a rank in a file, at most


def evaluate_checkpoint(
    storage: Storage,
    shards: ShardSet,
    split: str,
    on_unrecorded: Callable[[str], None] | None = None,
    on_queries: Callable[[Iterator[QueryResult]], None] | None = None,
    given: Sequence[ShardSet] = (),
    on_note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate the checkpoint at `storage` on a split. An evaluation on test is recorded in the checkpoint's directory.

    If the record cannot be written, `on_unrecorded` is called with the reason; without it, the error is raised.
    `on_queries` receives the result of each query. The split is compared with what the model was trained on, if its
    shards are these or among the `given` ones; `on_note` receives a line if they share something or cannot be compared.

    Raises `UserError` if the checkpoint cannot be loaded or does not fit the shards, or if scores are not finite.
    """
    trained, manifest = load_fitting_model(storage, shards), shards.manifest
    shared = _compare(trained, storage, shards, split, given or [shards], on_note)
    recordable = storage.directory is None or storage.directory.is_dir()
    is_recorded = split == "test" and recordable
    if is_recorded:  # before test is read: a damaged record must not lose the count
        _Readings.of(storage, manifest.collection)
    data = shards.split(split)
    # Without room for the record, whoever needs it would have to read test again.
    needs_room = is_recorded and on_unrecorded is None
    with _room_for_record(storage, len(data.queries)) if needs_room else nullcontext():
        ranked, moments = rank_checkpoint(trained, data, storage, shards, 0 if on_queries is None else TOP)
    retrieval = replace(summarise(ranked.ranks, len(data), data.moment_fractions), moments=moments)
    encoder, encoder_moments = None, None
    if shards.one_encoder:
        results = zero_shot(data, best_device())
        encoder, encoder_moments = {name: each.recall for name, each in results.items()}, results[ENCODER].moments
    protocol = _protocol(trained, manifest, shared or ())
    counted = None if shared is None else tuple(map(TrainingOverlap.of, shared))
    evaluation = Evaluation(
        split, manifest.collection, protocol, retrieval, None, encoder, counted, zero_shot_moments=encoder_moments
    )
    if is_recorded:
        try:
            evaluation = _record(evaluation, storage, str(shards.directory), trained.metrics)
        except (OSError, UserError) as error:
            if on_unrecorded is None:
                raise
            on_unrecorded(first_line(error))  # evaluating may have taken minutes: a full disk must not lose the result
    if on_queries is not None and ranked.best is not None:
        on_queries(query_results(data, ranked.ranks, ranked.best))
    return evaluation


def _room_for_record(storage: Storage, queries: int) -> AbstractContextManager[None]:
    """Keep room on the disk for a record and its ranks while the block runs. Raises OSError if there is none."""
    if storage.directory is None:
        return nullcontext()
    earlier = storage.directory / TEST_RECORD
    size = RECORD_BYTES + RANK_BYTES * queries + (earlier.stat().st_size if earlier.is_file() else 0)
    return reserved_room(storage.directory, size)


def _record(evaluation: Evaluation, storage: Storage, shards: str, metrics: dict[str, Any]) -> Evaluation:
    """Record an evaluation on test of the checkpoint with these metrics, and return it with its number.

    Raises `UserError` or OSError if it cannot be recorded.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with storage.lock(LOCK_SECONDS) as lease:
        now_there = parse_json(storage.read_text(METRICS), f"{storage}/{METRICS}")
        if json.dumps(now_there) != json.dumps(metrics):  # as text: NaN differs from itself
            raise UserError(f"{storage}: holds another checkpoint since it was evaluated")
        readings = _Readings.of(storage, evaluation.collection)  # others may have added theirs
        evaluation = replace(evaluation, reading=Reading(now, shards, readings.count + 1))
        lease.check()
        readings.add(evaluation, storage)
    return evaluation


def load_fitting_model(storage: Storage, shards: ShardSet) -> TrainedModel:
    """Load the model at `storage`. Raises `UserError` if it cannot be loaded or does not fit the shards' features."""
    trained = load_trained_model(storage)
    sizes, manifest = trained.experiment.data, shards.manifest
    if (sizes.video_size, sizes.text_size) != (manifest.video_size, manifest.text_size):
        raise UserError(
            f"{storage}: trained on features of sizes {sizes.video_size} / {sizes.text_size} (videos / queries), but"
            f" {shards.directory} has {manifest.video_size} / {manifest.text_size}"
        )
    shards.check_encoder_weight(trained.experiment.evaluation.encoder_weight)
    return trained


def score_checkpoint(trained: TrainedModel, split: Split, storage: Storage, shards: ShardSet) -> Tensor:
    """Return the scores (Q, V) of a split by the model of `storage`.

    Nothing is recorded, so it is not for test. Raises `UserError` naming what is damaged if scores are not finite.
    """
    with _blaming(storage, shards, split):
        return score_split(trained.model.to(best_device()), split, _weights(trained, storage))


def rank_checkpoint(
    trained: TrainedModel, split: Split, storage: Storage, shards: ShardSet, best: int = 0
) -> tuple[SplitRanks, MomentRecall | None]:
    """Rank the videos of a split by the scores of `score_checkpoint`, without holding them all.

    The second result is how often moments are found; None if no query has annotated windows. The `best` videos of each
    query are in the first one. Raises `UserError` as `score_checkpoint`.
    """
    with _blaming(storage, shards, split):
        model, weights = trained.model.to(best_device()), _weights(trained, storage)
        if split.moment_windows is None:
            return rank_split(model, split, weights, best=best), None
        moments = OwnMoments(split, weights, trained.moments)
        ranks = rank_split(model, split, weights, on_encoded=moments.add, best=best)
        return ranks, moments.result(ranks.is_own_first)


def _weights(trained: TrainedModel, storage: Storage) -> ScoreWeights:
    return ScoreWeights.of(trained.experiment.evaluation, trained.metrics, f"{storage}/{METRICS}")


@contextmanager
def _blaming(storage: Storage, shards: ShardSet, split: Split) -> Iterator[None]:
    """Raise `UserError` naming what is damaged if scores are not finite."""
    try:
        yield
    except ScoresNotFinite as error:
        if owner := find_not_finite(split):
            raise UserError(
                f"{shards.directory}: the features of {owner} in split {split.name} are not finite; convert again"
            ) from None
        reason = "its weights are damaged, or its training diverged"
        raise UserError(f"{storage}: {first_line(error)}: {reason}") from None


def _compare(
    trained: TrainedModel,
    storage: Storage,
    shards: ShardSet,
    split: str,
    given: Sequence[ShardSet],
    on_note: Callable[[str], None] | None,
) -> tuple[SharedCaptions, ...] | None:
    """Return what a split shares with what the model was trained on; None if the shards of its training are missing."""
    try:
        shared = compare_with_training(trained.metrics, shards, split, given)
    except ValueError as error:
        raise UserError(f"{storage}/{METRICS}: damaged: {error}") from None
    if on_note is not None:
        for each in shared or ():
            on_note(f"warning: {each.line()}")
        collections = training_collections(trained.metrics)
        if shared is None and collections is not None:
            on_note(
                f"note: trained on {collections}, whose shards are not among those given, so it is not known what"
                f" {split} of {shards.manifest.collection} shares with them; to compare, add them to --shards"
            )
    return shared


def _protocol(trained: TrainedModel, manifest: Manifest, shared: Sequence[SharedCaptions]) -> str:
    """Return the protocol of the shards with what training on other collections made less than honest."""
    recorded = trained.metrics.get(PROTOCOLS)
    own = recorded.get(manifest.collection) if isinstance(recorded, Mapping) else None
    words = manifest.protocol.split(", ")
    more = str(own).split(", ")[1:] if isinstance(own, str) else []
    more += [f"{each.first} overlaps {each.second}" for each in shared if each.first_collection != manifest.collection]
    return ", ".join(dict.fromkeys([*words, *more]))


def evaluate_each(
    storage: Storage,
    shards: Sequence[ShardSet],
    split: str,
    on_unrecorded: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Evaluation]:
    """Evaluate a checkpoint on a split of several collections, as `evaluate_checkpoint` on each.

    Each split is compared with what the model was trained on, if the shards of its training are among these. Test is
    read only after all shards have been found to fit the checkpoint and to have the split.

    Raises `UserError` also if two are of the same collection, whose records would be mixed up.
    """
    check_different_collections(shards)
    for each in shards:
        load_fitting_model(storage, each)
        each.split(split)
    return [evaluate_checkpoint(storage, each, split, on_unrecorded, None, shards, on_note) for each in shards]


def evaluate_test_once(checkpoint: Storage, shards: ShardSet) -> Evaluation:
    """Return the first recorded evaluation on test of the shards' collection.

    Evaluate and record now if there is none, or without its ranks.
    """
    collection = shards.manifest.collection
    recorded = recorded_test(checkpoint, collection)
    if recorded is not None and checkpoint.exists(_ranks_file(_read_records(checkpoint), collection)):
        return recorded
    return evaluate_checkpoint(checkpoint, shards, "test")


def evaluate_tests_once(checkpoint: Storage, collections: Collections) -> tuple[Evaluation, ...]:
    """Return what `evaluate_test_once` returns for each collection."""
    return tuple(evaluate_test_once(checkpoint, part) for part in collections.parts)


def recorded_test(checkpoint: Storage, collection: str | None = None) -> Evaluation | None:
    """Return the first recorded evaluation of a checkpoint on test, or on test of a collection; None without one."""
    records = _read_records(checkpoint)
    if collection is not None:
        records = _of_collection(records, collection)
    try:
        return Evaluation.from_dict(records[0]) if records else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint}/{TEST_RECORD}: damaged: {error!r}") from None


def recorded_ranks(checkpoint: Storage, collection: str | None = None) -> list[int]:
    """Return the rank of each query's video (Q,) at a recorded evaluation on test, or on test of a collection.

    Raises `UserError` if there are none, or if they are damaged.
    """
    name = TEST_RANKS if collection is None else _ranks_file(_read_records(checkpoint), collection)
    try:
        ranks = json.loads(checkpoint.read_text(name))
    except FileNotFoundError:
        raise UserError(f"{checkpoint}/{name}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{checkpoint}/{name}: damaged: {first_line(error)}") from None
    if not isinstance(ranks, list) or not all(type(rank) is int and 0 < rank < 2**31 for rank in ranks):
        raise UserError(f"{checkpoint}/{name}: damaged: must be a list of ranks")
    return ranks


def _of_collection(records: Sequence[dict[str, Any]], collection: str) -> list[dict[str, Any]]:
    return [record for record in records if record.get("collection", collection) == collection]


def _ranks_file(records: Sequence[dict[str, Any]], collection: str) -> str:
    """Return the name of the file with a collection's ranks: the collection of the first record has the plain one."""
    is_first = not records or bool(_of_collection(records[:1], collection))
    return TEST_RANKS if is_first else further_ranks(collection)


@dataclass(frozen=True)
class _Readings:
    """The evaluations of a checkpoint on test so far."""

    records: list[dict[str, Any]]  # not decoded, so that records of other versions are written back as they are
    count: int  # of readings of the collection; more than there are records if one could not be recorded
    ranks: str  # the name of the file with the collection's ranks
    has_ranks: bool  # whether they belong to a recorded reading

    @classmethod
    def of(cls, storage: Storage, collection: str) -> _Readings:
        records = _read_records(storage)
        ranks, own = _ranks_file(records, collection), _of_collection(records, collection)
        ranks_exist = storage.exists(ranks)
        numbers = [number for record in own if isinstance(number := record.get("test_reads"), int)]
        count = max(len(own), *numbers) if own else int(ranks_exist)
        return cls(records, count, ranks, bool(own) and ranks_exist)

    def add(self, evaluation: Evaluation, storage: Storage) -> None:
        """Record one more evaluation, then its ranks unless those of the first recorded one exist."""
        records = [*self.records, evaluation.to_dict()]
        storage.write_text(TEST_RECORD, json.dumps({"readings": records}, indent=1) + "\n")
        if not self.has_ranks:
            assert evaluation.retrieval.ranks is not None
            storage.write_text(self.ranks, json.dumps(evaluation.retrieval.ranks.tolist()) + "\n")


def _read_records(storage: Storage) -> list[dict[str, Any]]:
    """Return the records of `test.json`, oldest first. Raises `UserError` if the file is damaged."""
    if not storage.exists(TEST_RECORD):
        return []
    path = f"{storage}/{TEST_RECORD}"
    records = parse_json(storage.read_text(TEST_RECORD), path).get("readings")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: damaged: 'readings' must be a list of records")
    return records
