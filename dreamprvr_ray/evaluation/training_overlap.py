"""What an evaluated split shares with the shards that the model was trained on, where these are among those given.

A model that is evaluated on a collection of other people may have learned from its videos or sentences: collections
are cut from each other. Ids and sentences are compared, as within a collection and between those that are trained on
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.data.overlaps import SharedCaptions, find_shared
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.shards_record import KEY as SHARDS
from dreamprvr_ray.data.shards_record import ShardsRecord

LEARNED_FROM = {"val": ("train",), "test": ("train", "val")}  # by evaluated split; val chooses, or is trained on too


def compare_with_training(
    metrics: Mapping[str, Any], evaluated: ShardSet, split: str, given: Sequence[ShardSet]
) -> tuple[SharedCaptions, ...] | None:
    """Return what a split shares with the train and val splits that a checkpoint with these metrics was trained on.

    None if no shards of its training are among those given, so that this is not known. `given` are of different
    collections. Raises ValueError if the metrics' record of the shards is damaged.
    """
    trained_on = [shards for shards in given if _was_trained_on(metrics, shards.manifest)]
    if not trained_on:
        return None
    captions = {shards.manifest.collection: shards.captions() for shards in (*trained_on, evaluated)}
    judged = (evaluated.manifest.collection, split)
    return tuple(
        shared
        for shards in trained_on
        for learned in LEARNED_FROM[split]
        if not _is_declared(shards, evaluated, learned, split)
        and (shared := find_shared(captions, (shards.manifest.collection, learned), judged))
    )


def training_collections(metrics: Mapping[str, Any]) -> str | None:
    """Return the collections that a checkpoint with these metrics was trained on; None if it does not say."""
    collection = metrics.get("collection")
    return collection if isinstance(collection, str) else None


def _was_trained_on(metrics: Mapping[str, Any], manifest: Manifest) -> bool:
    """Return whether a model was trained on shards of this collection and of its numbers of videos and queries."""
    names = (training_collections(metrics) or "").split(" + ")
    if manifest.collection not in names or "train" not in manifest.splits:
        return False
    if SHARDS not in metrics:  # of an earlier version
        return True
    prefix = f"{manifest.collection} " if len(names) > 1 else ""
    train = manifest.splits["train"]
    counts = {"videos": train.videos, "queries": train.queries}
    return ShardsRecord.from_dict(metrics[SHARDS]).splits.get(f"{prefix}train") == counts


def _is_declared(shards: ShardSet, evaluated: ShardSet, learned: str, split: str) -> bool:
    """Return whether both splits are one by the protocol, which then says so: `paper` chooses on test."""
    splits = shards.manifest.splits
    return shards is evaluated and learned in splits and splits[learned].shards == splits[split].shards
