"""Evaluation of checkpoints. Every evaluation on test is recorded with the checkpoint.

CHECKPOINT/test.json         one record per evaluation on test
CHECKPOINT/test_ranks.json   ranks of the queries' videos at the first one, in the split's order
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from dreamprvr_ray.checkpoints.checkpoint import load_model
from dreamprvr_ray.checkpoints.layout import TEST_RANKS, TEST_RECORD
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import ObjectStoreError, UserError, first_line
from dreamprvr_ray.evaluation.metrics import RECALL_RANKS, Retrieval
from dreamprvr_ray.evaluation.retrieval import evaluate
from dreamprvr_ray.storage.files import parse_json
from dreamprvr_ray.storage.location import Storage


@dataclass(frozen=True)
class Reading:
    """When and where a checkpoint was evaluated on test."""

    at: str  # ISO 8601, UTC
    shards: str  # directory
    number: int  # of this checkpoint's evaluations on test, from 1


@dataclass(frozen=True)
class Evaluation:
    """The retrieval of a checkpoint on a split."""

    split: str
    collection: str
    protocol: str
    retrieval: Retrieval
    reading: Reading | None = None  # of test; None for other splits and for files of the authors' release

    def to_dict(self) -> dict[str, Any]:
        """Return the record in `test.json`, which is also the commands' JSON output."""
        result = {"split": self.split, "collection": self.collection, "protocol": self.protocol}
        result |= self.retrieval.to_dict()
        if self.reading is None:
            return result
        return {"at": self.reading.at, "shards": self.reading.shards, **result, "test_reads": self.reading.number}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Read what `to_dict` wrote."""
        reading = None
        if "test_reads" in values:
            reading = Reading(values["at"], values["shards"], values["test_reads"])
        return cls(values["split"], values["collection"], values["protocol"], Retrieval.from_dict(values), reading)

    def lines(self) -> list[str]:
        """Return a summary for people."""
        retrieval, recall = self.retrieval, self.retrieval.recall
        percent = " ".join(f"R@{k} {recall.at[k]:.1f}" for k in RECALL_RANKS)
        lines = [
            f"{self.split} of {self.collection} (protocol: {self.protocol}):"
            f" {recall.queries} queries, {retrieval.videos} videos",
            f"  {percent}  SumR {recall.sumr:.1f}  median rank {retrieval.median_rank:g}",
        ]
        for name, group in (retrieval.by_moment or {}).items():
            if group.queries:
                lines.append(f"  moment/video {name}: SumR {group.sumr:.1f} ({group.queries} queries)")
        if retrieval.ties > recall.queries / 100:
            lines.append(
                f"  warning: {retrieval.ties} queries score another video exactly as high as their own;"
                " ties count against them"
            )
        if self.reading and self.reading.number > 1:
            lines.append(
                f"  note: this model has been evaluated on test {self.reading.number} times; do not use test to"
                " choose between models"
            )
        return lines


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
