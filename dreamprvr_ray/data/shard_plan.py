"""Planning a conversion: which captions make up train, val and test, and which video goes into which shard.

The plan depends on the captions and settings only. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.data.captions import Caption
from dreamprvr_ray.data.encoding import SEARCH
from dreamprvr_ray.data.feature_files import RawFeatures
from dreamprvr_ray.data.manifest import FeatureType, Protocol
from dreamprvr_ray.data.overlaps import check_val_is_not_test
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError

SHARD_BYTES = 256 * 2**20  # upper limit for the features in a shard
SHARDS_PER_SPLIT = 16  # enough to keep several processes busy
SMALLEST_SHARD_BYTES = 8 * 2**20  # a split is divided into `SHARDS_PER_SPLIT` shards unless they were smaller than this


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """Settings of a conversion.

    Attributes:
        dtype: Type of the stored features.
        protocol: What to do if the source has no separate val and test splits: carve val from train (`dev`), or use
            test as val as the authors do (`paper`).
        dev_fraction: Fraction of the train videos that `dev` makes the val split, between 0 and 1.
        seed: Seed of that choice.
        one_encoder: Whether frames and queries come from one encoder; None: to be measured. The shards do not depend on
            it, only their manifest.
    """

    dtype: FeatureType = "float16"
    protocol: Literal["dev", "paper"] = "dev"
    dev_fraction: float = 0.1
    seed: int = 0
    one_encoder: bool | None = None

    def __post_init__(self) -> None:
        if not 0 < self.dev_fraction < 1:
            raise UserError(f"--dev-fraction {self.dev_fraction}: must be above 0 and below 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")


@dataclass(frozen=True)
class ShardPlan:
    """One planned shard.

    Attributes:
        stem: Its name, such as `train-00003`.
        max_bytes: Upper limit of the size of its features.
        captions: Each video's id with its captions.
    """

    stem: str
    max_bytes: float
    captions: tuple[tuple[str, tuple[Caption, ...]], ...]


def choose_splits(source: Source, settings: ConversionSettings) -> tuple[Protocol, dict[str, list[Caption]]]:
    """Return the protocol and the captions of train, val and test. With protocol `paper`, val is the test list itself.

    A source without train is for evaluation: its val and test, or the one that it has, are taken as they are.

    Raises:
        UserError: The source has train, but neither val nor test, the settings do not fit it, or train would be left
            empty.
    """
    train, val, test = (source.splits.get(split) for split in ("train", "val", "test"))
    if train is None:
        if settings.protocol == "paper":
            raise UserError(f"--protocol paper: {source.collection} has no train split; omit the option")
        if val and test:
            check_val_is_not_test(val, test, source.origin)
        return "own splits", {name: own for name, own in (("val", val), ("test", test)) if own}
    if val and test and {caption.query for caption in val} != {caption.query for caption in test}:
        if settings.protocol == "paper":
            raise UserError(f"--protocol paper: {source.collection} has separate val and test splits; omit the option")
        check_val_is_not_test(val, test, source.origin)
        return "own splits", {"train": train, "val": val, "test": test}
    test = test or val
    if not test:
        raise UserError(f"{source.origin}: neither a val nor a test split; at least one is required")
    if settings.protocol == "paper":
        return "paper", {"train": train, "val": test, "test": test}
    videos = list(dict.fromkeys(caption.video for caption in train))
    dev = carve(videos, settings.dev_fraction, settings.seed)
    if len(dev) >= len(videos):
        raise UserError(
            f"--dev-fraction {settings.dev_fraction}: leaves none of {len(videos)} train videos for training"
        )
    return "dev", {
        "train": [caption for caption in train if caption.video not in dev],
        "val": [caption for caption in train if caption.video in dev],
        "test": test,
    }


def carve(videos: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Draw a fraction of the videos, at least one, for a split."""
    order = np.random.default_rng(seed).permutation(len(videos))
    return {videos[i] for i in order[: max(1, round(len(videos) * fraction))]}


def plan_shards(
    splits: Mapping[str, Sequence[Caption]], raw: RawFeatures, dtype: FeatureType, uncaptioned: Sequence[str] = ()
) -> tuple[list[ShardPlan], dict[str, tuple[str, ...]]]:
    """Return the shards to write and the names of each split's shards.

    Videos without captions are the split `search`, after the others.

    A shard's size is bounded by assuming that every video has 128 frames and every query 30 tokens. A test split that
    is the val split itself shares its shards.
    """
    itemsize = np.dtype(dtype).itemsize
    video_bytes = (CLIPS + FRAMES) * raw.video_size * itemsize
    query_bytes = QUERY_TOKENS * raw.text_size * itemsize
    plans: list[ShardPlan] = []
    stems: dict[str, tuple[str, ...]] = {}
    for split, captions in (*splits.items(), *([(SEARCH, [])] if uncaptioned else [])):
        if split == "test" and captions is splits.get("val"):
            stems[split] = stems["val"]
            continue
        by_video: dict[str, list[Caption]] = {video: [] for video in uncaptioned} if split == SEARCH else {}
        for caption in captions:
            by_video.setdefault(caption.video, []).append(caption)
        limit = (len(by_video) * video_bytes + len(captions) * query_bytes) / SHARDS_PER_SPLIT
        limit = min(max(limit, SMALLEST_SHARD_BYTES), SHARD_BYTES)
        shards: list[list[tuple[str, tuple[Caption, ...]]]] = []
        sizes = [limit]
        for video, own in by_video.items():
            own_bytes = video_bytes + len(own) * query_bytes
            if sizes[-1] + own_bytes > limit:
                shards.append([])
                sizes.append(0)
            shards[-1].append((video, tuple(own)))
            sizes[-1] += own_bytes
        stems[split] = tuple(f"{split}-{number:05d}" for number in range(len(shards)))
        plans += [
            ShardPlan(stem, size, tuple(shard))
            for stem, size, shard in zip(stems[split], sizes[1:], shards, strict=True)
        ]
    return plans, stems
