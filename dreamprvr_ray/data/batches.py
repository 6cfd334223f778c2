"""Batches for training and evaluation, collated from shards.

A batch is global: `plan_epoch` chooses its videos from (seed, epoch) alone, and `distributed.worker_slice` divides it
among the workers, so the number of workers does not change which videos are trained on together.

Shapes: B videos and Q queries in the batch, M = 32 clips, L = 128 frames (or, if trimmed, as many as the longest video
has), Lq tokens of the longest query; Dv and Dt values per video and text row.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.config_sections import CLIPS, FRAMES
from dreamprvr_ray.data.shards import Split

_PREFETCHED = 2  # how many batches `prefetch` prepares in advance


@dataclass(frozen=True, eq=False)
class Batch:
    """Videos with all their queries, padded. Masks are True at frames and tokens, False at padding."""

    clips: Tensor  # (B, M, Dv) float32
    frames: Tensor  # (B, L, Dv) float32, zero rows after a video's last frame
    frame_mask: Tensor  # (B, L) bool
    tokens: Tensor  # (Q, Lq, Dt) float32, zero rows after a query's last token
    token_mask: Tensor  # (Q, Lq) bool
    owner: Tensor  # (Q,) int64, ascending: row of the query's video in this batch

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`. From pinned memory to CUDA the copy is asynchronous."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


def plan_epoch(videos: int | np.ndarray, batch_videos: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the global batches of an epoch: arrays of `batch_videos` video numbers; the last may be smaller.

    `videos` are the numbers to train on, or how many there are. Together the batches are a permutation of them (of 0 to
    `videos` - 1) that depends on (seed, epoch) only.
    """
    order = np.random.default_rng([seed, epoch]).permutation(videos)
    return [order[start : start + batch_videos] for start in range(0, len(order), batch_videos)]


def collate(split: Split, videos: np.ndarray, trimmed: bool = False) -> Batch:
    """Return the batch of these videos (numbers in the split, possibly none) with all their queries.

    Features are in pinned memory if CUDA is available. `trimmed` sets L to the longest video's frames instead of 128.
    Lq is 1 without queries, and a trimmed L is 1 without videos, since reductions need at least one element.
    """
    queries, owner = queries_of(split, videos)
    return Batch(*collate_videos(split, videos, trimmed), *collate_queries(split, queries), torch.from_numpy(owner))


def queries_of(split: Split, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers (Q,) of these videos' queries, video by video, and each query's position in `videos` (Q,)."""
    starts = split.first_query[videos]
    counts = split.first_query[videos + 1] - starts
    queries = np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return queries, np.repeat(np.arange(len(videos)), counts)


def other_right_videos(split: Split, videos: np.ndarray) -> np.ndarray | None:
    """Return the pairs of query and video of a batch in which the video is right for the query, but not its own.

    They are (P, 2) positions in the batch of these videos with all their queries; None if there are no such pairs.
    """
    if split.right_videos is None:
        return None
    offsets, numbers = split.right_videos
    queries, owner = queries_of(split, videos)
    counts = offsets[queries + 1] - offsets[queries]
    rows = np.repeat(np.arange(len(queries)), counts)
    right = numbers[np.arange(counts.sum()) + np.repeat(offsets[queries] - (np.cumsum(counts) - counts), counts)]
    column_of = np.full(len(split), -1)
    column_of[videos] = np.arange(len(videos))
    pairs = np.stack([rows, column_of[right]], axis=1)
    pairs = pairs[(pairs[:, 1] >= 0) & (pairs[:, 1] != owner[rows])]
    return pairs if len(pairs) else None


def collate_videos(split: Split, videos: np.ndarray, trimmed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return clips (B, M, Dv), frames (B, L, Dv) and frame mask (B, L) of these videos, as in `Batch`."""
    counts = split.frame_counts[videos]
    length = int(counts.max(initial=1)) if trimmed else FRAMES
    clips = _empty(len(videos), CLIPS, split.video_size)
    frames = _empty(len(videos), length, split.video_size)
    for row, video in enumerate(videos.tolist()):
        clips[row].copy_(split.clips(video))
        rows = split.frames(video)
        frames[row, : len(rows)].copy_(rows)
        frames[row, len(rows) :].zero_()
    return clips, frames, _mask(counts, length)


def collate_queries(split: Split, queries: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return tokens (Q, Lq, Dt) and token mask (Q, Lq) of these queries (numbers in the split), as in `Batch`."""
    counts = split.token_counts[queries]
    mask = _mask(counts, int(counts.max(initial=1)))
    tokens = _empty(*mask.shape, split.text_size).zero_()
    if not len(queries):
        return tokens, mask
    # Consecutive queries are adjacent in the files, so each run of them needs only one copy.
    runs = np.split(queries, np.flatnonzero(np.diff(queries) != 1) + 1)
    rows = torch.cat([piece for run in runs for piece in split.tokens(int(run[0]), int(run[-1]) + 1)])
    tokens[mask] = rows.float()
    return tokens, mask


def _empty(*shape: int) -> Tensor:
    # Allocated as pinned memory, which torch reuses; pinning later would copy hundreds of megabytes per batch.
    return torch.empty(shape, pin_memory=torch.cuda.is_available())


def _mask(counts: np.ndarray, length: int) -> Tensor:
    """Return a mask (len(counts), length), bool, that is True in the first counts[i] columns of row i."""
    return torch.from_numpy(np.arange(length) < counts[:, None])


def prefetch(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield from `batches`, which a background thread consumes two batches ahead.

    An error in `batches` is raised here. The thread ends when the batches do or the iterator is closed.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=_PREFETCHED)
    stopped = threading.Event()

    def draw() -> None:
        try:
            for batch in batches:
                if stopped.is_set():
                    return
                ready.put(batch)
                if stopped.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # raised in the consumer instead
            ready.put(error)

    thread = threading.Thread(target=draw, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while thread.is_alive():  # it may be blocked by a full queue
            with suppress(queue.Empty):
                ready.get(timeout=0.01)
        thread.join()
