"""What the encoder of the features says by itself, without any model: zero-shot scores of queries against videos.

Only for features of one encoder (CLIP, a sentence encoder): its embeddings of a sentence and of a frame can be compared
directly. A query is its sentence's embedding (`Split.sentences`); every score is a cosine of it, in float32.

Shapes: Q queries and V videos of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.data.batches import collate_videos
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.device import autocast
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.evaluation.score_blocks import QUERY_BLOCK, blocks_of_like_length
from dreamprvr_ray.model.scoring import best_cosines

Comparison = Literal["best frame", "best clip", "pooled video", "best windows"]
COMPARISONS = get_args(Comparison)
# Lengths, in frame rows, of the windows whose means the encoder's score compares. A moment is described by many frames;
# windows of several lengths retrieve better than frames, clips and the whole video (docs/lab-notes.md, 2026-11-27).
WINDOWS = (1, 5, 15, 31)


@torch.no_grad()
def encoder_scores(split: Split, device: torch.device, workers: Workers | None = None) -> Tensor:
    """Return the encoder's score (Q, V) of all queries and videos of a split, on `device` and on every worker.

    It is `best windows` of `compare`. The workers divide the videos among them, so that every worker gets the same
    numbers.
    """
    workers = workers or Workers()
    parts = workers.divide(np.arange(len(split)))
    (own_columns,) = compare(split, ["best windows"], device, parts[workers.rank])
    return workers.gather_for_same_loss(own_columns.T.contiguous(), [len(part) for part in parts]).T


@torch.no_grad()
def compare(
    split: Split,
    comparisons: Sequence[Comparison],
    device: torch.device,
    videos: np.ndarray | None = None,
    sentences: Tensor | None = None,
) -> list[Tensor]:
    """Return the cosines (Q, videos) of each comparison, in blocks that bound the memory.

    `best frame` and `best clip`: with the most similar of the video's frame rows and of its 32 clip rows.
    `pooled video`: with the mean of its frame rows. `best windows`: for each of `WINDOWS` with the most similar mean of
    that many frame rows in a row, or of all of a shorter video; the mean over the lengths. `videos` are numbers in the
    split; all of them by default. `sentences` (Q, Dt) are the embeddings of other queries, to compare in the place of
    the split's own.
    """
    videos = np.arange(len(split)) if videos is None else videos
    encoder = Encoder(split, device, sentences)
    scores = [torch.zeros(encoder.queries, len(videos), device=device) for _ in comparisons]
    for block in blocks_of_like_length(split.frame_counts[videos]):
        columns = torch.from_numpy(block).to(device)
        for matrix, rows in zip(scores, encoder.rows(videos[block], comparisons), strict=True):
            for start in range(0, encoder.queries, QUERY_BLOCK):
                part = slice(start, start + QUERY_BLOCK)
                matrix[part, columns] = encoder.score(rows, part)
    return scores


class Encoder:
    """The comparison of sentences (Q, D) with the videos of a split, by the encoder of its features.

    By default, the sentences are the queries of the split.
    """

    def __init__(self, split: Split, device: torch.device, sentences: Tensor | None = None) -> None:
        self._split, self._device = split, device
        sentences = split.sentences(np.arange(len(split.owner))) if sentences is None else sentences
        self._sentences = sentences.to(device)

    @property
    def queries(self) -> int:
        """Number of sentences."""
        return len(self._sentences)

    def rows(
        self, videos: np.ndarray, comparisons: Sequence[Comparison] = ("best windows",)
    ) -> list[list[tuple[Tensor, Tensor | None]]]:
        """Return what each of `compare`'s comparisons looks at in a block of videos, which are numbers in the split."""
        clips, frames, mask = (rows.to(self._device) for rows in collate_videos(self._split, videos, trimmed=True))
        with autocast(self._device, "fp32"):
            return [list(_rows(comparison, clips, frames, mask)) for comparison in comparisons]

    def score(self, rows: Sequence[tuple[Tensor, Tensor | None]], queries: slice) -> Tensor:
        """Return the cosines (q, B) of some of the queries by one comparison's rows."""
        with autocast(self._device, "fp32"):
            return torch.stack([best_cosines(self._sentences[queries], *each) for each in rows]).mean(0)


def _rows(
    comparison: Comparison, clips: Tensor, frames: Tensor, mask: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the rows of videos (B, n, D) that a comparison looks at, and which of them exist; the best of each counts.

    `clips` (B, 32, D), `frames` (B, L, D) and their `mask` (B, L) are those of a block of videos.
    """
    if comparison == "best frame":
        yield frames, mask
    elif comparison == "best clip":
        yield clips, None
    elif comparison == "pooled video":
        yield frames.sum(1, keepdim=True), None  # has the mean's direction; rows after the last frame are zero
    else:
        for length in WINDOWS:
            yield window_sums(frames, mask.sum(1), length), None


def window_sums(frames: Tensor, counts: Tensor, length: int) -> Tensor:
    """Return the sums (B, n, D) of `length` frame rows in a row, which have the direction of their means.

    Args:
        frames: (B, L, D).
        counts: (B,), the number of frames of each video, at least 1; the rows after them do not matter.
        length: Number of rows. A shorter video has one window, all of it.

    Windows begin every quarter of their length; the last one ends with the video. A video with fewer
    windows than others of the block repeats its last one, which changes no maximum.
    Each is summed by itself, so that equal windows of two videos tie exactly.
    """
    device, (videos, rows, size) = frames.device, frames.shape
    step = max(length // 4, 1)
    lengths = counts.clamp(max=length)[:, None]
    starts = torch.arange(0, max(rows - length, 0) + step, step, device=device)
    starts = torch.minimum(starts, counts[:, None] - lengths)
    offsets = torch.arange(length, device=device)
    inside = offsets < lengths[:, :, None]  # (B, 1, length)
    numbers = torch.where(inside, starts[:, :, None] + offsets, 0).reshape(videos, -1, 1).expand(-1, -1, size)
    windows = frames.gather(1, numbers).view(videos, -1, length, size)
    return (windows * inside[..., None]).sum(2)
