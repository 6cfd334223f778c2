"""Exact ranks of right videos, counted over blocks of scores, and the metrics computed from them.

Every evaluation ranks here, whatever gave the scores. docs/model.md, section 7, defines ranks, ties and recall.

Shapes: Q queries, V videos, B videos of a block, P pairs of a query and one of its right videos, R right videos of the
query that has most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.evaluation.metrics import Recall, Retrieval
from dreamprvr_ray.evaluation.score_blocks import ScoreBlock

MOMENT_BOUNDS = (0.0, 0.2, 0.4, 1.0)  # groups by moment length / video length: each excludes its lower bound


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
    """Rank the right videos of each query among the scores (Q, V), as `rank_blocks` does."""
    videos = torch.arange(scores.shape[1], device=scores.device)
    return rank_blocks([ScoreBlock(videos, scores.__getitem__)], right, offsets)


def rank_blocks(
    blocks: Iterable[ScoreBlock], right: Tensor, offsets: Tensor | None = None, workers: Workers | None = None
) -> Ranks:
    """Rank the right videos of each query by counting, without ever holding the scores of all videos.

    Args:
        blocks: The scores of all queries with this worker's videos. They are read twice: first for the scores of the
            right videos, then to count the wrong videos before them.
        right: (Q,), the number of each query's video. If queries have several right videos, (P,), query by query, each
            once: those of query q are right[offsets[q]:offsets[q + 1]], and no query is without one.
        offsets: (Q + 1,), or None.
        workers: Each has the scores of some of the videos. Every worker gets the whole result.

    A tie counts against the query: a wrong video with the same score is before a right one. nan is last.
    """
    workers = workers or Workers()
    counts = torch.ones_like(right) if offsets is None else offsets.diff()
    if not len(counts):
        empty = torch.zeros(0, dtype=torch.int64, device=right.device)
        return Ranks(empty, empty.bool())
    filled = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (Q, R): the first of each row
    found, videos = _right_scores(blocks, right, counts)
    numbers = torch.tensor([videos], device=right.device)
    wrong = int(workers.sum_for_same_loss(numbers)) - counts  # (Q,) wrong videos
    table = torch.full(filled.shape, torch.nan, dtype=found.dtype, device=found.device)
    table[filled] = workers.sum_for_same_loss(found)
    table = -(-table).sort(1).values  # descending, with nan last
    before, equal = (workers.sum_for_same_loss(each) for each in _count(blocks, table))
    # Right videos were counted with the wrong ones.
    before -= torch.stack([(table >= score[:, None]).sum(1) for score in table.unbind(1)], 1)
    equal -= (table[:, :1] == table).sum(1)
    place = 1 + torch.arange(filled.shape[1], device=table.device)
    positions = place + torch.where(table.isnan(), wrong[:, None], before)
    return Ranks(positions[:, 0], equal > 0, None if offsets is None else positions[filled], offsets)


@dataclass(frozen=True)
class BestVideos:
    """The videos with the highest scores for each query, best first."""

    videos: Tensor  # (Q, n), their numbers
    scores: Tensor  # (Q, n)


def best_videos(blocks: Iterable[ScoreBlock], queries: int, count: int, device: torch.device) -> BestVideos:
    """Return the `count` videos with the highest scores for each query, or all videos of fewer.

    `blocks` hold the scores of all queries with all videos.
    """
    best = BestVideos(torch.zeros(queries, 0, dtype=torch.int64, device=device), torch.zeros(queries, 0, device=device))
    for block in blocks:
        scores = [block.score(part) for part in block.parts(queries)]
        if not scores:
            break
        joined = torch.cat([best.scores, torch.cat(scores)], 1)
        videos = torch.cat([best.videos, block.videos.expand(queries, -1)], 1)
        top = joined.topk(min(count, joined.shape[1]))
        best = BestVideos(videos.gather(1, top.indices), top.values)
    return best


def _right_scores(blocks: Iterable[ScoreBlock], right: Tensor, counts: Tensor) -> tuple[Tensor, int]:
    """Return the scores (P,) of the right videos that are in the blocks, zero for others, and the number of videos."""
    query = torch.repeat_interleave(torch.arange(len(counts), device=right.device), counts)
    column = torch.empty(int(right.max()) + 1, dtype=torch.int64, device=right.device)
    found, videos = torch.zeros(len(right), device=right.device), 0
    for block in blocks:
        known = block.videos < len(column)
        column.fill_(-1)[block.videos[known]] = torch.arange(len(known), device=right.device)[known]
        inside = (column[right] >= 0).nonzero()[:, 0]
        parts = block.parts(len(counts))
        # Score only those queries whose right videos are in the block; pairs are sorted by query.
        ends = torch.searchsorted(query[inside], torch.tensor([part.stop for part in parts], device=right.device))
        start = 0
        for part, end in zip(parts, ends.tolist(), strict=True):
            pairs = inside[start:end]
            if len(pairs):
                scores = block.score(part)
                found = found.to(scores.dtype)
                found[pairs] = scores[query[pairs] - part.start, column[right[pairs]]]
            start = end
        videos += len(known)
    return found, videos


def _count(blocks: Iterable[ScoreBlock], table: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many scores are at least as high as each of the table's (Q, R), and how many equal its first (Q,)."""
    before = torch.zeros(table.shape, dtype=torch.int64, device=table.device)
    equal = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    known = ~table.isnan()
    for block in blocks:
        for rows in block.parts(len(table)):
            scores, own = block.score(rows), table[rows]
            equal[rows] += (scores == own[:, :1]).sum(1)
            for place in range(table.shape[1]):
                # Most queries have few right videos: do not compare the rows of the others.
                compared = known[rows, place].nonzero()[:, 0]
                some = scores if len(compared) == len(scores) else scores[compared]
                before[rows.start + compared, place] += (some >= own[compared, place, None]).sum(1)
    return before, equal


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
