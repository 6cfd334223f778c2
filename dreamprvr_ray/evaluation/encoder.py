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
from dreamprvr_ray.model.scoring import best_cosines

Comparison = Literal["best frame", "best clip", "pooled video"]
COMPARISONS = get_args(Comparison)
# The encoder's score is the mean of all three: each alone, and any two, retrieve worse (docs/lab-notes.md, 2026-11-27).
ENCODER: tuple[Comparison, ...] = COMPARISONS
VIDEO_BLOCK = 64  # videos compared at a time
QUERY_BLOCK = 512  # queries compared at a time


@torch.no_grad()
def encoder_scores(split: Split, device: torch.device, workers: Workers | None = None) -> Tensor:
    """Return the encoder's score (Q, V) of all queries and videos of a split, on `device` and on every worker.

    It is the mean of three cosines of the sentence: with the video's best frame row, with its best clip row, and with
    the mean of its frame rows. The workers divide the videos among them, so that every worker gets the same numbers.
    """
    workers = workers or Workers()
    parts = workers.divide(np.arange(len(split)))
    own_columns = torch.stack(compare(split, ENCODER, device, parts[workers.rank])).mean(0)
    return workers.gather_for_same_loss(own_columns.T.contiguous(), [len(part) for part in parts]).T


@torch.no_grad()
def compare(
    split: Split, comparisons: Sequence[Comparison], device: torch.device, videos: np.ndarray | None = None
) -> list[Tensor]:
    """Return the cosines (Q, videos) of each comparison, in blocks that bound the memory.

    `best frame` and `best clip`: with the most similar of the video's frame rows and of its 32 clip rows.
    `pooled video`: with the mean of its frame rows. `videos` are numbers in the split; all of them by default.
    """
    videos = np.arange(len(split)) if videos is None else videos
    queries = np.arange(len(split.owner))
    scores = [torch.zeros(len(queries), len(videos), device=device) for _ in comparisons]
    # A block is as long as its longest video: put videos of similar length into the same block.
    order = np.argsort(split.frame_counts[videos], kind="stable")
    with autocast(device, "fp32"):
        sentences = torch.cat([split.sentences(block).to(device) for block in _blocks(queries, QUERY_BLOCK)])
        for block in _blocks(order, VIDEO_BLOCK):
            clips, frames, mask = (rows.to(device) for rows in collate_videos(split, videos[block], trimmed=True))
            columns = torch.from_numpy(block).to(device)
            pooled = frames.sum(1, keepdim=True)  # has the mean's direction; rows after the last frame are zero
            rows: dict[Comparison, tuple[Tensor, Tensor | None]] = {
                "best frame": (frames, mask),
                "best clip": (clips, None),
                "pooled video": (pooled, None),
            }
            for matrix, comparison in zip(scores, comparisons, strict=True):
                matrix[:, columns] = torch.cat(
                    [best_cosines(part, *rows[comparison]) for part in sentences.split(QUERY_BLOCK)]
                )
    return scores


def _blocks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[start : start + size] for start in range(0, len(indices), size))
