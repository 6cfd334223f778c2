"""From shards to the batches that training and evaluation eat.

The batch is global: `plan_epoch` draws its videos by (seed, epoch) alone, `worker_slice` divides it among the workers, so the number of
workers changes nothing but speed.

Shapes: B videos and Q queries of a batch, M = 32 clips, L = 128 frames (the longest video's where they are trimmed), Lq tokens of its
longest query; Dv, Dt feature sizes.
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

from dreamprvr_ray.config import CLIPS, FRAMES
from dreamprvr_ray.data.shards import Split

_READY = 2  # batches that `prefetch` keeps ready


@dataclass(frozen=True, eq=False)
class Batch:
    """Videos with all their queries."""

    clips: Tensor  # (B, M, Dv) float32
    frames: Tensor  # (B, L, Dv) float32, zero rows after a video's last frame
    frame_mask: Tensor  # (B, L) bool, True where a frame is
    tokens: Tensor  # (Q, Lq, Dt) float32, zero rows after a query's last token
    token_mask: Tensor  # (Q, Lq) bool, True where a token is
    owner: Tensor  # (Q,) int64, ascending: the query's video in this batch

    def to(self, device: torch.device | str) -> Batch:
        """The same on `device`; the copy of a collated batch to CUDA runs beside the computation."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


def plan_epoch(videos: int, batch_videos: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The global batches of an epoch: a permutation of the videos by (seed, epoch), cut into arrays of `batch_videos`, the last maybe smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(videos)
    return [order[start : start + batch_videos] for start in range(0, videos, batch_videos)]


def collate(split: Split, videos: np.ndarray, trimmed: bool = False) -> Batch:
    """The batch of these videos (indices into the split, also none) with all their queries; features in pinned memory where CUDA is.

    Without any query, Lq is 1, and L without any video where it is `trimmed`: reductions need one.
    """
    queries, owner = queries_of(split, videos)
    return Batch(*collate_videos(split, videos, trimmed), *collate_queries(split, queries), torch.from_numpy(owner))


def queries_of(split: Split, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The queries (Q,) of these videos, each video's after the other's, and of which of `videos` each is (Q,)."""
    starts = split.first_query[videos]
    counts = split.first_query[videos + 1] - starts
    queries = np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return queries, np.repeat(np.arange(len(videos)), counts)


def collate_videos(split: Split, videos: np.ndarray, trimmed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Clips (B, M, Dv), frames (B, L, Dv) and frame mask (B, L) of these videos, as in `Batch`."""
    counts = split.frame_counts[videos]
    length = int(counts.max(initial=1)) if trimmed else FRAMES
    clips = _empty(len(videos), CLIPS, split.video_size)
    frames = _empty(len(videos), length, split.video_size)
    for row, video in enumerate(videos.tolist()):
        clips[row].copy_(split.clips(video))
        present = split.frames(video)
        frames[row, : len(present)].copy_(present)
        frames[row, len(present) :].zero_()
    return clips, frames, _mask(counts, length)


def collate_queries(split: Split, queries: np.ndarray) -> tuple[Tensor, Tensor]:
    """Tokens (Q, Lq, Dt) and token mask (Q, Lq) of these queries (indices into the split), as in `Batch`."""
    counts = split.token_counts[queries]
    mask = _mask(counts, int(counts.max(initial=1)))
    tokens = _empty(*mask.shape, split.text_size).zero_()
    if not len(queries):
        return tokens, mask
    # Consecutive queries lie side by side in the files: a copy a run of them, not a copy a query.
    runs = np.split(queries, np.flatnonzero(np.diff(queries) != 1) + 1)
    rows = torch.cat([piece for run in runs for piece in split.tokens(int(run[0]), int(run[-1]) + 1)])
    tokens[mask] = rows.float()
    return tokens, mask


def _empty(*shape: int) -> Tensor:
    # Pinned at once: torch reuses such memory, while pinning afterwards copies hundreds of megabytes a batch.
    return torch.empty(shape, pin_memory=torch.cuda.is_available())


def _mask(counts: np.ndarray, length: int) -> Tensor:
    """(len(counts), length) bool: True in the first counts[i] columns of row i."""
    return torch.from_numpy(np.arange(length) < counts[:, None])


def prefetch(batches: Iterable[Batch]) -> Iterator[Batch]:
    """`batches`, drawn in a background thread that keeps two ready.

    An error in `batches` is raised where the next batch is taken. The thread ends when the consumer is done or closes the iterator.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=_READY)
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
        except BaseException as error:  # whatever it is, it belongs to the consumer
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
        while thread.is_alive():  # it may wait for room
            with suppress(queue.Empty):
                ready.get(timeout=0.01)
        thread.join()
