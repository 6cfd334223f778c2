"""The test split is read once per final model, and that it was read is recorded beside the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dreamprvr_ray.checkpoints.checkpoint import load_model
from dreamprvr_ray.checkpoints.layout import TEST_RECORD
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import ObjectStoreError, UserError
from dreamprvr_ray.evaluation.retrieval import evaluate
from dreamprvr_ray.storage.files import parse_json
from dreamprvr_ray.storage.location import Storage

TEST_RANKS = "test_ranks.json"  # of the queries' own videos at the first reading, in the split's order


def evaluate_checkpoint(
    storage: Storage, shards: ShardSet, split: str, unrecorded: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Retrieval of a checkpoint, wherever it is kept, on a split, by the names of the commands' JSON.

    Reading test leaves a record in a checkpoint directory; `test_reads` in the result counts the readings, this one
    included. Where the record cannot be written, `unrecorded` is told why; without it, the error is raised. Raises
    `UserError` where the checkpoint does not fit the shards.
    """
    with storage.local_directory() as path:
        trained = load_model(path)
        recordable = path.is_dir()
    sizes, manifest = trained.experiment.data, shards.manifest
    if (sizes.video_size, sizes.text_size) != (manifest.video_size, manifest.text_size):
        raise UserError(
            f"{storage} was trained on features of sizes {sizes.video_size} / {sizes.text_size},"
            f" {shards.directory} holds {manifest.video_size} / {manifest.text_size}"
        )
    model = trained.model.to(best_device())
    retrieval = evaluate(model, shards.split(split), trained.experiment.evaluation.clip_weight)
    result = {"split": split, "collection": manifest.collection, "protocol": manifest.protocol} | retrieval.to_dict()
    if split != "test" or not recordable:
        return result
    readings = _readings(storage)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    readings.append({"at": now, "shards": str(shards.directory), **result, "test_reads": len(readings) + 1})
    try:
        if len(readings) == 1:
            storage.write_text(TEST_RANKS, json.dumps(retrieval.ranks.tolist()) + "\n")
        storage.write_text(TEST_RECORD, json.dumps({"readings": readings}, indent=1) + "\n")
    except (OSError, ObjectStoreError) as error:  # a full disk, too: the numbers have taken their time
        if unrecorded is None:
            raise
        unrecorded(str(error).splitlines()[0])
    return readings[-1]


def test_once(checkpoint: Storage, shards: str) -> dict[str, Any]:
    """The first reading of test that is recorded beside a checkpoint; where there is none, this is it."""
    return recorded_test(checkpoint) or evaluate_checkpoint(checkpoint, local_shards(shards), "test")


def recorded_test(checkpoint: Storage) -> dict[str, Any] | None:
    """The result of the first reading of test that is recorded beside a checkpoint, if there is one."""
    return next(iter(_readings(checkpoint)), None)


def recorded_ranks(checkpoint: Storage) -> list[int]:
    """The ranks of the first reading of test that is recorded beside a checkpoint."""
    ranks: list[int] = json.loads(checkpoint.read_text(TEST_RANKS))
    return ranks


def _readings(storage: Storage) -> list[dict[str, Any]]:
    if not storage.exists(TEST_RECORD):
        return []
    return list(parse_json(storage.read_text(TEST_RECORD), f"{storage}/{TEST_RECORD}")["readings"])


def described(result: dict[str, Any]) -> list[str]:
    """An evaluation's result in lines for a person."""
    recall = " ".join(f"R@{k} {result[f'R@{k}']:.1f}" for k in (1, 5, 10, 100))
    lines = [
        f"{result['split']} of {result['collection']} (protocol: {result['protocol']}): {result['queries']} queries, {result['videos']} videos",
        f"  {recall}  SumR {result['SumR']:.1f}  median rank {result['median_rank']:g}",
    ]
    for name, group in (result["by_moment"] or {}).items():
        if group["queries"]:
            lines.append(f"  moment/video {name}: SumR {group['SumR']:.1f} ({group['queries']} queries)")
    if result["ties"] > result["queries"] / 100:
        lines.append(f"  warning: {result['ties']} queries score another video exactly as high as their own; ties lose")
    if result.get("test_reads", 1) > 1:
        lines.append(
            f"  note: this model's test split has been read {result['test_reads']} times: choose nothing by it"
        )
    return lines
