"""A small collection with moments and frame captions, for the figures of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.shards import ShardSet

SIZE = 12
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & “door”"
FRAMES = (1, 40, 130, 20)  # of the videos: one frame, fewer than 128, more


@dataclass(frozen=True)
class Collection:
    """Shards, and the files that only looking at results needs."""

    shards: ShardSet
    moments: Path
    frame_captions: Path


def make_collection(folder: Path) -> Collection:
    """Write four videos per split, of which val's have 3, 4, 3 and 1 queries; the last has no known times."""
    random = np.random.default_rng(0)

    def split(name: str, counts: tuple[int, ...]) -> FeatureSplit:
        frames = {f"{name}{video}": random.standard_normal((length, SIZE)) for video, length in enumerate(FRAMES)}
        queries = [
            Query(f"{video}#{number}", video, _sentence(video, number), random.standard_normal((5, SIZE)))
            for video, count in zip(frames, counts, strict=True)
            for number in range(count)
        ]
        return FeatureSplit(frames, queries)

    splits = {
        "train": split("train", (1, 1, 1, 1)),
        "val": split("val", (3, 4, 3, 1)),
        "test": split("test", (1, 1, 1, 1)),
    }
    shards = write_shards(folder / "shards", collection="example", splits=splits, one_encoder=True)
    moments = [
        {"query": query, "video": query.split("#")[0], "start": 4.0, "end": 2.0}  # swapped, as some annotators do
        for query in shards.split("val").queries
    ]
    (folder / "moments.jsonl").write_text("".join(json.dumps(moment) + "\n" for moment in moments))
    captions = [[f"val{video}", 10, [[0, 10, "a room"], [2.0, 4.0, EVIL]]] for video in range(len(FRAMES) - 1)]
    (folder / "frame_captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    return Collection(ShardSet.open(folder / "shards"), folder / "moments.jsonl", folder / "frame_captions.jsonl")


def _sentence(video: str, number: int) -> str:
    return (
        EVIL if (video, number) == ("val1", 0) else "" if (video, number) == ("val3", 0) else f"door {number} {video}"
    )
