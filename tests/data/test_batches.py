"""Batches: the plan of an epoch, collating, and reading ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamprvr_ray.data.batches import Batch, collate, collate_queries, collate_videos, plan_epoch, prefetch
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.distributed import worker_slice


@pytest.fixture
def split(tree: Path, converted: Callable[..., ShardSet], many_shards: None) -> Split:
    """A split of eight videos in several shards."""
    return converted(tree).split("train")


def test_the_plan_depends_on_seed_and_epoch_only() -> None:
    plan = plan_epoch(50, 16, seed=3, epoch=2)
    assert [len(batch) for batch in plan] == [16, 16, 16, 2]
    assert sorted(np.concatenate(plan).tolist()) == list(range(50))
    np.random.default_rng().random()
    np.random.seed(1)
    assert all((a == b).all() for a, b in zip(plan, plan_epoch(50, 16, seed=3, epoch=2), strict=True))
    for seed, epoch in ((3, 3), (4, 2), (2, 3)):
        assert np.concatenate(plan).tolist() != np.concatenate(plan_epoch(50, 16, seed, epoch)).tolist()
    # The batch size divides the order without changing it.
    np.testing.assert_array_equal(np.concatenate(plan), np.concatenate(plan_epoch(50, 7, seed=3, epoch=2)))


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 13])
def test_slices_partition_the_batch(workers: int) -> None:
    batch = np.random.default_rng(0).permutation(11)
    slices = [worker_slice(batch, rank, workers) for rank in range(workers)]
    np.testing.assert_array_equal(np.concatenate(slices), batch)
    sizes = [len(part) for part in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("videos", [[5, 0, 7], [0, 1, 2, 3, 4, 5, 6, 7], [3], [7, 6], []])
def test_collated_batches_hold_each_video_with_its_queries(split: Split, videos: list[int]) -> None:
    batch = collate(split, np.array(videos, dtype=np.int64))
    size = len(videos)
    assert {
        name: (tensor.dtype, tuple(tensor.shape[:2])) for name, tensor in vars(batch).items() if name != "owner"
    } == {
        "clips": (torch.float32, (size, 32)),
        "frames": (torch.float32, (size, 128)),
        "frame_mask": (torch.bool, (size, 128)),
        "tokens": (torch.float32, tuple(batch.token_mask.shape)),
        "token_mask": (torch.bool, tuple(batch.token_mask.shape)),
    }
    queries = [query for video in videos for query in range(split.first_query[video], split.first_query[video + 1])]
    assert batch.owner.tolist() == [
        row for row, video in enumerate(videos) for _ in range(split.first_query[video], split.first_query[video + 1])
    ]
    assert batch.token_mask.shape[1] == max([1, *(int(split.token_counts[query]) for query in queries)])
    for row, video in enumerate(videos):
        rows = split.frames(video).float()
        assert torch.equal(batch.clips[row], split.clips(video).float())
        assert torch.equal(batch.frames[row, : len(rows)], rows)
        assert not batch.frames[row, len(rows) :].any()
        assert batch.frame_mask[row].tolist() == [True] * len(rows) + [False] * (128 - len(rows))
    for row, query in enumerate(queries):
        (tokens,) = split.tokens(query, query + 1)
        assert torch.equal(batch.tokens[row, : len(tokens)], tokens.float())
        assert not batch.tokens[row, len(tokens) :].any()
        assert batch.token_mask[row].sum() == len(tokens)
        assert batch.token_mask[row, : len(tokens)].all()


def test_queries_in_any_order(split: Split) -> None:
    queries = np.random.default_rng(0).permutation(len(split.queries))[:9]
    tokens, mask = collate_queries(split, queries)
    for row, query in enumerate(queries.tolist()):
        assert torch.equal(tokens[row][mask[row]], split.tokens(query, query + 1)[0].float())
    everything, mask = collate_queries(split, np.arange(len(split.queries)))
    assert torch.equal(everything[mask], torch.cat(split.tokens(0, len(split.queries))).float())


def test_a_batch_owns_its_memory(split: Split) -> None:
    clips, frames, _ = collate_videos(split, np.arange(2))
    before = split.clips(0).clone()
    clips.zero_()
    frames.zero_()
    assert torch.equal(split.clips(0), before)
    moved = collate(split, np.arange(2)).to("meta")
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}


def _batch(number: int) -> Batch:
    return Batch(*(torch.full((2,), number) for _ in range(6)))


def _running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_keeps_the_order() -> None:
    assert [int(batch.owner[0]) for batch in prefetch(_batch(number) for number in range(10))] == list(range(10))
    assert list(prefetch([])) == []
    assert not _running()


def test_prefetch_raises_in_the_consumer() -> None:
    def failing() -> Iterator[Batch]:
        yield _batch(0)
        raise ValueError("a bad shard")

    batches = prefetch(failing())
    assert int(next(batches).owner[0]) == 0
    with pytest.raises(ValueError, match="a bad shard"):
        next(batches)
    assert not _running()


def test_prefetch_stops_with_its_consumer() -> None:
    drawn = []

    def endless() -> Iterator[Batch]:
        for number in count():
            drawn.append(number)
            yield _batch(number)

    batches = prefetch(endless())
    next(batches)
    assert _running()
    batches.close()  # type: ignore[attr-defined]
    assert not _running()
    assert len(drawn) <= 6  # it prepared two batches, not the whole epoch
