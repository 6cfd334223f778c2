"""The scores of a split in blocks of its videos, which bound the memory.

Shapes: Q queries, q of them at a time, B videos of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_SCORES = 2**22  # compared at a time, which bounds the memory
QUERY_BLOCK = 512  # queries encoded or scored at a time, at most
VIDEO_BLOCK = 64  # videos scored at a time
SORTED_VIDEOS = 4096  # sorted by length at a time


@dataclass(frozen=True)
class ScoreBlock:
    """The scores of all queries with some of the videos.

    Attributes:
        videos: (B,), their numbers.
        score: Returns the scores (q, B) of q consecutive queries, always the same ones for the same slice.
    """

    videos: Tensor
    score: Callable[[slice], Tensor]

    def parts(self, queries: int) -> list[slice]:
        """Return the slices of the queries that are scored at a time."""
        size = min(QUERY_BLOCK, max(1, BLOCK_SCORES // max(1, len(self.videos))))
        return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]

    def computed(self, queries: int) -> ScoreBlock:
        """Return the block with all its scores in memory."""
        parts = [self.score(part) for part in self.parts(queries)]
        return ScoreBlock(self.videos, torch.cat(parts).__getitem__) if parts else self


def blocks_of_like_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks of indices of `lengths`, each of which has similar ones: a block is as long as its longest video.

    Indices that are far from each other are in different blocks, so that the queries of a block's videos are close.
    """
    for start in range(0, len(lengths), SORTED_VIDEOS):
        order = start + np.argsort(lengths[start : start + SORTED_VIDEOS], kind="stable")
        yield from (order[first : first + VIDEO_BLOCK] for first in range(0, len(order), VIDEO_BLOCK))
