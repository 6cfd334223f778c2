"""Shards of one encoder whose moments begin where a sentence fits best and continue where it fits less."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.shards import ShardSet

SIZE = 16
VIDEOS = {"train": 90, "val": 20, "test": 20}


def fading_shards(
    directory: Path, *, videos: Mapping[str, int] = VIDEOS, meaningful: bool = True, one_encoder: bool = True
) -> ShardSet:
    """Write shards of 64 frames a video and three queries each, whose events fit best at their beginning.

    If not `meaningful`, train's windows are random.
    """
    splits = {}
    for seed, (name, count) in enumerate(videos.items()):
        splits[name] = _split(name, count, np.random.default_rng(seed), meaningful or name != "train")
    return write_shards(directory, collection="made", splits=splits, one_encoder=one_encoder)


def _split(name: str, count: int, random: np.random.Generator, meaningful: bool) -> FeatureSplit:
    videos, queries = {}, []
    for number in range(count):
        video, frames = f"{name}{number}", 0.5 * random.standard_normal((64, SIZE))
        for query in range(3):
            event, length = random.standard_normal(SIZE), int(random.integers(15, 21))
            start = int(random.integers(0, 64 - length))
            frames[start : start + length] += (np.where(np.arange(length) < 5, 1.5, 0.2))[:, None] * event
            if not meaningful:
                start = int(random.integers(0, 64 - length))
            tokens = event + 0.05 * random.standard_normal((2, SIZE))
            moment = (float(start), float(start + length), 64.0)
            queries.append(Query(f"{video}#{query}", video, f"event {query}", tokens, moment))
        videos[video] = frames
    return FeatureSplit(videos, queries)
