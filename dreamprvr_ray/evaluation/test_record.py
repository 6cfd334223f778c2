"""Evaluation of checkpoints. Every evaluation on test is recorded with the checkpoint.

CHECKPOINT/test.json         one record per evaluation on test
CHECKPOINT/test_ranks.json   ranks of the queries' videos at the first one, in the split's order
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dreamprvr_ray.checkpoints.checkpoint import load_model
from dreamprvr_ray.checkpoints.layout import TEST_RANKS, TEST_RECORD
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import ObjectStoreError, UserError, first_line
from dreamprvr_ray.evaluation.metrics import Evaluation, Reading
from dreamprvr_ray.evaluation.retrieval import evaluate
from dreamprvr_ray.storage.files import parse_json
from dreamprvr_ray.storage.location import Storage


def evaluate_checkpoint(
    storage: Storage, shards: ShardSet, split: str, on_unrecorded: Callable[[str], None] | None = None
) -> Evaluation:
    """Evaluate the checkpoint at `storage` on a split. An evaluation on test is recorded in the checkpoint's directory.

    If the record cannot be written, `on_unrecorded` is called with the reason; without it, the error is raised.
    Raises `UserError` if the checkpoint cannot be loaded or does not fit the shards.
    """
    with storage.local_directory() as path:
        trained = load_model(path)
        recordable = path.is_dir()
    sizes, manifest = trained.experiment.data, shards.manifest
    if (sizes.video_size, sizes.text_size) != (manifest.video_size, manifest.text_size):
        raise UserError(
            f"{storage}: trained on features of sizes {sizes.video_size} / {sizes.text_size} (videos / queries), but"
            f" {shards.directory} has {manifest.video_size} / {manifest.text_size}"
        )
    model = trained.model.to(best_device())
    retrieval = evaluate(model, shards.split(split), trained.experiment.evaluation.clip_weight)
    evaluation = Evaluation(split, manifest.collection, manifest.protocol, retrieval)
    if split != "test" or not recordable:
        return evaluation
    records = _read_records(storage)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    evaluation = replace(evaluation, reading=Reading(now, str(shards.directory), len(records) + 1))
    try:
        if not records:
            assert retrieval.ranks is not None
            storage.write_text(TEST_RANKS, json.dumps(retrieval.ranks.tolist()) + "\n")
        records.append(evaluation.to_dict())
        storage.write_text(TEST_RECORD, json.dumps({"readings": records}, indent=1) + "\n")
    except (OSError, ObjectStoreError) as error:
        if on_unrecorded is None:
            raise
        on_unrecorded(first_line(error))  # evaluating may have taken minutes: a full disk must not lose the result
    return evaluation


def evaluate_test_once(checkpoint: Storage, shards: str) -> Evaluation:
    """Return the first recorded evaluation on test; evaluate and record now if there is none."""
    return recorded_test(checkpoint) or evaluate_checkpoint(checkpoint, local_shards(shards), "test")


def recorded_test(checkpoint: Storage) -> Evaluation | None:
    """Return the first recorded evaluation of a checkpoint on test, or None."""
    records = _read_records(checkpoint)
    return Evaluation.from_dict(records[0]) if records else None


def recorded_ranks(checkpoint: Storage) -> list[int]:
    """Return the rank of each query's video (Q,) at the first recorded evaluation on test."""
    ranks: list[int] = json.loads(checkpoint.read_text(TEST_RANKS))
    return ranks


def _read_records(storage: Storage) -> list[dict[str, Any]]:
    # Not decoded, so that records of other versions are written back as they are.
    if not storage.exists(TEST_RECORD):
        return []
    return list(parse_json(storage.read_text(TEST_RECORD), f"{storage}/{TEST_RECORD}")["readings"])
