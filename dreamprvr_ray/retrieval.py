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
from dreamprvr_ray.model.attention import at_least_float32
from dreamprvr_ray.model.dreamprvr import DreamPRVR, VideoEncoding

RECALL_RANKS = (1, 5, 10, 100)
MOMENT_BOUNDS = (0.0, 0.2, 0.4, 1.0)  # groups by moment length / video length, each open below and closed above
QUERY_BLOCK = 512  # queries encoded and scored at a time
SMALLEST_NORM = 1e-12  # that a cosine divides by
VIDEO_BLOCK = 64  # videos encoded and scored at a time


@dataclass(frozen=True)
class TokenScores:
    """The best token's cosine and dot product, each (Q, B) in float32 (float64 for float64 input)."""

    cosine: Tensor
    dot: Tensor


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

    def named(self) -> dict[str, float]:
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

    def named(self) -> dict[str, Any]:
        """Everything by the names of the commands' JSON; a group without queries has no recall, which is None and not zero."""
        groups = None
        if self.by_moment is not None:
            named = {name: group.named() if group.queries else dict.fromkeys(group.named()) for name, group in self.by_moment.items()}
            groups = {name: {"queries": self.by_moment[name].queries, **recall} for name, recall in named.items()}
        return {
            "videos": self.videos,
            "queries": self.recall.queries,
            **self.recall.named(),
            "median_rank": self.median_rank,
            "ties": self.ties,
            "by_moment": groups,
        }


@dataclass(frozen=True)
class Ranks:
    """The rank of each query's own video, from 1, and whether another video has exactly its score; each (Q,)."""

    rank: Tensor
    tied: Tensor


def token_scores(queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> TokenScores:
    """Scores of (Q, D) queries against the best of each video's (B, L, D) tokens; zero rows of padding take part.

    With a mask (B, L) bool, only those tokens do.
    Always in float32 or better: in bfloat16 scores would tie by the thousand.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, tokens = at_least_float32(queries), at_least_float32(tokens)
        if not len(tokens) or not len(queries):  # a worker without videos: keep the graph, so that every gradient exists
            empty = (queries.sum() + tokens.sum()) * queries.new_zeros(len(queries), len(tokens))
            return TokenScores(empty, empty)
        dot, cosine = _BestTokens.apply(queries, tokens, mask)
        return TokenScores(cosine, dot)


@torch.no_grad()
def best_cosines(queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The cosines (Q, B) of `token_scores`, and nothing that only a training wants."""
    with torch.autocast(queries.device.type, enabled=False):
        queries, tokens = at_least_float32(queries), at_least_float32(tokens)
        if not len(tokens) or not len(queries):
            return queries.new_zeros(len(queries), len(tokens))
        cosines = _products(queries, tokens, mask).div_(tokens.norm(dim=-1).clamp_min(SMALLEST_NORM))
        best: Tensor = cosines.amax(-1) / queries.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
        return best


def _products(queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """(Q, B, L), -inf where the mask is false."""
    products: Tensor = (queries @ tokens.flatten(0, 1).T).view(len(queries), *tokens.shape[:2])
    if mask is not None:
        products += torch.zeros(mask.shape, dtype=products.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    return products


class _BestTokens(torch.autograd.Function):
    """The largest dot product and the largest cosine of each query with each video's tokens.

    Only the best tokens have gradients. Left to autograd, a score of every token would be read and written twenty times on its way to them.
    """

    @staticmethod
    def forward(context: Any, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """queries (Q, D), tokens (B, L, D), mask (B, L) or None -> dot products and cosines (Q, B)."""
        products = _products(queries, tokens, mask)
        query_norm, token_norm = queries.norm(dim=-1, keepdim=True), tokens.norm(dim=-1)
        dot, best_dot = products.max(-1, keepdim=True)
        cosine, best_cosine = products.div_(token_norm.clamp_min(SMALLEST_NORM)).max(-1, keepdim=True)
        cosine = cosine.squeeze(-1) / query_norm.clamp_min(SMALLEST_NORM)
        context.save_for_backward(queries, tokens, query_norm, token_norm, cosine, best_dot, best_cosine)
        return dot.squeeze(-1), cosine

    @staticmethod
    def backward(context: Any, d_dot: Tensor, d_cosine: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        queries, tokens, query_norm, token_norm, cosine, best_dot, best_cosine = context.saved_tensors
        d_products = queries.new_zeros(len(queries), *tokens.shape[:2])
        # What a cosine loses by its norms, which have no gradient where they are too small to divide by.
        lost = d_cosine * cosine
        lost_by_query = lost.sum(-1, keepdim=True) / query_norm.square().masked_fill(query_norm < SMALLEST_NORM, torch.inf)
        lost_by_token = d_products.scatter_(-1, best_cosine, lost.unsqueeze(-1)).sum(0)
        lost_by_token /= token_norm.square().masked_fill(token_norm < SMALLEST_NORM, torch.inf)
        d_cosine = (d_cosine / query_norm.clamp_min(SMALLEST_NORM)).unsqueeze(-1)
        # No two entries of one call meet, so that a GPU adds in one order only. The same places are overwritten first.
        d_products.scatter_(-1, best_cosine, d_cosine / _of_best(token_norm.clamp_min(SMALLEST_NORM), best_cosine))
        d_products = d_products.scatter_add_(-1, best_dot, d_dot.unsqueeze(-1)).flatten(1)
        d_queries = d_products @ tokens.flatten(0, 1) - queries * lost_by_query
        d_tokens = (d_products.T @ queries).view_as(tokens) - tokens * lost_by_token.unsqueeze(-1)
        return d_queries, d_tokens, None


def _of_best(of_tokens: Tensor, best: Tensor) -> Tensor:
    """(B, L) and places (Q, B, 1) -> (Q, B, 1)"""
    return of_tokens.expand(len(best), -1, -1).gather(-1, best)


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
        groups = {f"{low:g}-{high:g}": Recall.of(rank[(moment_fractions > low) & (moment_fractions <= high)]) for low, high in bounds}
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


def fused_scores(queries: Tensor, videos: VideoEncoding, clip_weight: float) -> Tensor:
    """w_clip * S_clip + w_frame * S_frame, (Q, B), by blocks of queries: a query's scores of every token are never held for all of them."""
    return torch.cat(
        [
            clip_weight * best_cosines(part, videos.clip_tokens) + (1 - clip_weight) * best_cosines(part, videos.frame_tokens, videos.frame_mask)
            for part in queries.split(QUERY_BLOCK)
        ]
    )


def _blocks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[start : start + size] for start in range(0, len(indices), size))
