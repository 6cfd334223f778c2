"""Queries that several videos of their split are right for. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dreamprvr_ray.data.captions import Caption
from dreamprvr_ray.data.near_misses import quoted

_NAMED = 3  # how many ids a note names


def right_videos(captions: Sequence[Caption]) -> list[tuple[str, ...]] | None:
    """Return the ids of each query's right videos, its own first, or None if each query has one."""
    if not any(caption.also for caption in captions):
        return None
    return [(caption.video, *caption.also) for caption in captions]


def within_splits(splits: Mapping[str, list[Caption]]) -> dict[str, list[Caption]]:
    """Return the splits with right videos that no query of the same split has as its own left out.

    A split without such videos is returned as it is, and splits that are one list remain one.
    """
    done: dict[int, list[Caption]] = {}
    return {split: done.setdefault(id(captions), _within(captions)) for split, captions in splits.items()}


def _within(captions: list[Caption]) -> list[Caption]:
    if not any(caption.also for caption in captions):
        return captions
    videos = {caption.video for caption in captions}
    return [
        caption if videos.issuperset(caption.also)
        else replace(caption, also=tuple(video for video in caption.also if video in videos))
        for caption in captions
    ]  # fmt: skip


def left_out_notes(splits: Mapping[str, Sequence[Caption]]) -> Iterator[str]:
    """Yield a line for each split with right videos that `within_splits` leaves out."""
    for split, captions in splits.items():
        videos = {caption.video for caption in captions}
        left_out = [video for caption in captions for video in caption.also if video not in videos]
        if left_out:
            ids = list(dict.fromkeys(left_out))
            named = ", ".join(map(quoted, ids[:_NAMED])) + (", ..." if len(ids) > _NAMED else "")
            yield (
                f"{split}: {len(left_out):,} right videos of queries are left out, because no query of the split is"
                f" about them: {named}"
            )
