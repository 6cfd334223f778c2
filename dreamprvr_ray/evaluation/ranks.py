"""Exact ranks of right videos, counted over blocks of scores, and the metrics computed from them.

Every evaluation ranks here, whatever gave the scores. docs/model.md, section 7, defines ranks, ties and recall.

Shapes: Q queries, V videos, P pairs of a query and one of its right videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.evaluation.metrics import Recall, Retrieval

MOMENT_BOUNDS = (0.0, 0.2, 0.4, 1.0)  # groups by moment length / video length: each excludes its lower bound
BLOCK_SCORES = 2**22  # compared at a time, which bounds the memory


@dataclass(frozen=True)
class Ranks:
    """Where the right videos of each query are among all videos, from 1.

    `positions` and `offsets` are None if each query has one right video.
    """

    rank: Tensor  # (Q,) of the best right video
    tied: Tensor  # (Q,) bool: whether a wrong video has exactly the score of the best right video
    positions: Tensor | None = None  # (P,) of all right videos, best first, query by query
    offsets: Tensor | None = None  # (Q + 1,): those of query q are positions[offsets[q]:offsets[q + 1]]


def exact_ranks(scores: Tensor, right: Tensor, offsets: Tensor | None = None) -> Ranks:
    """Rank the right videos of each query among the scores (Q, V) by counting.

    `right` (Q,) is the number of each query's video. If queries have several right videos, `right` (P,) holds them
    query by query, each once: those of query q are right[offsets[q]:offsets[q + 1]], and no query is without one.

    A tie counts against the query: a wrong video with the same score is before a right one. nan is last.
    """
    queries, videos = scores.shape
    counts = torch.ones_like(right) if offsets is None else offsets.diff()
    first = torch.arange(queries, device=right.device) if offsets is None else offsets[:-1]
    blocks = torch.arange(queries, device=right.device).split(max(1, BLOCK_SCORES // max(1, videos)))
    parts = [
        _block_positions(scores[block], *_table(right, first[block], counts[block])) for block in blocks if len(block)
    ]
    if not parts:
        empty = torch.zeros(0, dtype=torch.int64, device=scores.device)
        return Ranks(empty, empty.bool())
    rank = torch.cat([positions[:, 0] for positions, _ in parts])
    tied = torch.cat([tied for _, tied in parts])
    if offsets is None:
        return Ranks(rank, tied)
    lists = [
        positions[_is_filled(counts[block], positions.shape[1])]
        for block, (positions, _) in zip(blocks, parts, strict=True)
    ]
    return Ranks(rank, tied, torch.cat(lists), offsets)


def _table(right: Tensor, first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the right videos of q queries as rows (q, R), and which entries are filled: the first of each row."""
    filled = _is_filled(counts, int(counts.max()))
    column = torch.arange(filled.shape[1], device=right.device)
    return right[torch.where(filled, first[:, None] + column, first[:, None])], filled


def _is_filled(counts: Tensor, columns: int) -> Tensor:
    return torch.arange(columns, device=counts.device) < counts[:, None]


def _block_positions(scores: Tensor, right: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions (q, R) of the right videos, best first, and whether a wrong one ties with the best (q,).

    scores (q, V), right (q, R), filled (q, R); positions where `filled` is false have no meaning.
    """
    right_scores = scores.gather(1, right).masked_fill(~filled, torch.nan)
    right_scores = -(-right_scores).sort(1).values  # descending, with nan last
    wrong_scores = scores.scatter(1, right, torch.nan)
    all_wrong = scores.shape[1] - filled.sum(1)
    columns = []
    for before, score in enumerate(right_scores.unbind(1)):
        rows = filled[:, before].nonzero()[:, 0]  # of queries with that many right videos
        wrong_before = all_wrong.clone()
        # Most queries have few right videos: do not compare the rows of the others.
        compared = wrong_scores if len(rows) == len(scores) else wrong_scores[rows]
        wrong_before[rows] = (compared >= score[rows, None]).sum(1)
        columns.append(1 + before + torch.where(score.isnan(), all_wrong, wrong_before))
    return torch.stack(columns, 1), (wrong_scores == right_scores[:, :1]).any(1)


def summarise(ranks: Ranks, videos: int, moment_fractions: np.ndarray | None = None) -> Retrieval:
    """Compute the metrics of ranks among `videos` videos.

    `moment_fractions` (Q,) is moment length / video length of each query, nan if unknown.
    """
    rank = ranks.rank.cpu().numpy()
    groups = lists = None
    if moment_fractions is not None and not np.isnan(moment_fractions).all():
        bounds = pairwise(MOMENT_BOUNDS)
        groups = {
            f"{low:g}-{high:g}": Recall.from_ranks(rank[(moment_fractions > low) & (moment_fractions <= high)])
            for low, high in bounds
        }
    if ranks.positions is not None and ranks.offsets is not None:
        lists = Recall.of_lists(ranks.positions.cpu().numpy(), ranks.offsets.cpu().numpy())
    return Retrieval(
        videos,
        Recall.from_ranks(rank),
        median_rank=float(np.median(rank)) if len(rank) else float("nan"),
        ties=int(ranks.tied.sum()),
        by_moment=groups,
        ranks=rank,
        mean_rank=float(rank.mean()) if len(rank) else None,
        list_recall=lists,
        right_videos=None if ranks.positions is None else len(ranks.positions),
    )
