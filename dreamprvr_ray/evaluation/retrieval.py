"""Scores of queries against videos, exact ranks, and what is reported of them.

Shapes: Q queries, B or V videos, L tokens of a video, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.data.batches import collate_queries, collate_videos
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.scoring import fused_scores

RECALL_RANKS = (1, 5, 10, 100)
MOMENT_BOUNDS = (0.0, 0.2, 0.4, 1.0)  # groups by moment length / video length, each open below and closed above
QUERY_BLOCK = 512  # queries encoded and scored at a time
VIDEO_BLOCK = 64  # videos encoded and scored at a time


@dataclass(frozen=True)
class Recall:
    """Recall in percent at ranks 1, 5, 10 and 100, their sum, and of how many queries."""

    queries: int
    at: dict[int, float]
    sumr: float

    @classmethod
    def of(cls, ranks: np.ndarray) -> Recall:
        """The recall of ranks (Q,), counted from 1; zero where there is no query."""
        at = {k: 100 * float(np.mean(ranks <= k)) if len(ranks) else 0.0 for k in RECALL_RANKS}
        return cls(len(ranks), at, sum(at.values()))

    def to_dict(self) -> dict[str, float]:
        """`{"R@1": ..., "R@5": ..., "R@10": ..., "R@100": ..., "SumR": ...}`."""
        return {f"R@{k}": value for k, value in self.at.items()} | {"SumR": self.sumr}


@dataclass(frozen=True)
class Retrieval:
    """How well the queries of a split find their videos."""

    videos: int
    recall: Recall
    median_rank: float
    ties: int  # queries whose video shares its score with another one
    by_moment: dict[str, Recall] | None  # by moment length / video length, where moments are known
    ranks: np.ndarray = field(repr=False, compare=False)  # (Q,) of each query's own video, from 1

    def to_dict(self) -> dict[str, Any]:
        """Everything by the names of the commands' JSON; a group without queries has no recall, which is None and not zero."""
        groups = None
        if self.by_moment is not None:
            named = {
                name: group.to_dict() if group.queries else dict.fromkeys(group.to_dict())
                for name, group in self.by_moment.items()
            }
            groups = {name: {"queries": self.by_moment[name].queries, **recall} for name, recall in named.items()}
        return {
            "videos": self.videos,
            "queries": self.recall.queries,
            **self.recall.to_dict(),
            "median_rank": self.median_rank,
            "ties": self.ties,
            "by_moment": groups,
        }


@dataclass(frozen=True)
class Ranks:
    """The rank of each query's own video, from 1, and whether another video has exactly its score; each (Q,)."""

    rank: Tensor
    tied: Tensor


def exact_ranks(scores: Tensor, own: Tensor) -> Ranks:
    """Ranks by counting: (Q, V) scores and each query's own video (Q,). Ties lose, and not-a-number ranks last."""
    own_score = scores.gather(1, own[:, None])
    at_least = (scores >= own_score).sum(1)  # the own video is among them, unless its score is not a number
    rank = torch.where(own_score[:, 0].isnan(), scores.shape[1], at_least)
    return Ranks(rank, (scores == own_score).sum(1) > 1)


def summarise(ranks: Ranks, videos: int, moment_fractions: np.ndarray | None = None) -> Retrieval:
    """What is reported of ranks; `moment_fractions` (Q,) are moment length / video length, not-a-number where unknown."""
    rank = ranks.rank.cpu().numpy()
    groups = None
    if moment_fractions is not None and not np.isnan(moment_fractions).all():
        bounds = pairwise(MOMENT_BOUNDS)
        groups = {
            f"{low:g}-{high:g}": Recall.of(rank[(moment_fractions > low) & (moment_fractions <= high)])
            for low, high in bounds
        }
    median = float(np.median(rank)) if len(rank) else float("nan")
    return Retrieval(videos, Recall.of(rank), median, int(ranks.tied.sum()), groups, rank)


@torch.no_grad()
def evaluate(model: DreamPRVR, split: Split, clip_weight: float, workers: Workers | None = None) -> Retrieval:
    """Retrieval of all queries of a split among all its videos, as `score_split` scores them; every worker gets the whole result."""
    scores = score_split(model, split, clip_weight, workers)
    own = torch.from_numpy(np.array(split.owner)).to(scores.device)
    return summarise(exact_ranks(scores, own), len(split), split.moment_fractions)


@torch.no_grad()
def score_split(model: DreamPRVR, split: Split, clip_weight: float, workers: Workers | None = None) -> Tensor:
    """Fused scores (Q, V) of all queries and all videos of a split, on the model's device and on every worker.

    The workers divide the videos and the queries among them. The model is left in the mode it was in.
    """
    training = model.training
    model.eval()
    try:
        return _split_scores(model, split, clip_weight, workers or Workers())
    finally:
        model.train(training)


def _split_scores(model: DreamPRVR, split: Split, clip_weight: float, workers: Workers) -> Tensor:
    device = next(model.parameters()).device
    query_parts = workers.divide(np.arange(len(split.owner)))
    video_parts = workers.divide(np.arange(len(split)))

    embeddings = []
    for block in _blocks(query_parts[workers.rank], QUERY_BLOCK):
        with torch.autocast("cpu", enabled=False):  # which cannot join the shards' float16 rows
            tokens, mask = collate_queries(split, block)
        embeddings.append(model.encode_queries(tokens.to(device), mask.to(device)).float())
    own_queries = torch.cat(embeddings) if embeddings else torch.zeros(0, model.config.hidden_size, device=device)
    queries = workers.gather_for_same_loss(own_queries, [len(part) for part in query_parts])

    own_videos = video_parts[workers.rank]
    own_columns = torch.zeros(len(queries), len(own_videos), device=device)
    # Where frames are trimmed, videos of like lengths share a block.
    order = np.argsort(split.frame_counts[own_videos], kind="stable") if model.trimmed else np.arange(len(own_videos))
    for places in _blocks(order, VIDEO_BLOCK):
        clips, frames, mask = collate_videos(split, own_videos[places], model.trimmed)
        encoding = model.encode_videos(clips.to(device), frames.to(device), mask.to(device))
        own_columns[:, torch.from_numpy(places).to(device)] = fused_scores(queries, encoding, clip_weight)
    return workers.gather_for_same_loss(own_columns.T.contiguous(), [len(part) for part in video_parts]).T


def _blocks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[start : start + size] for start in range(0, len(indices), size))
