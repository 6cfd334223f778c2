"""Scores of queries against videos' tokens (model page, section 2).

Shapes: Q queries, B videos, L tokens of a video, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamprvr_ray.model.attention import at_least_float32
from dreamprvr_ray.model.dreamprvr import VideoEncoding

QUERY_BLOCK = 512  # queries scored at a time
SMALLEST_NORM = 1e-12  # that a cosine divides by


@dataclass(frozen=True)
class TokenScores:
    """The best token's cosine and dot product, each (Q, B) in float32 (float64 for float64 input)."""

    cosine: Tensor
    dot: Tensor


def token_scores(queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> TokenScores:
    """Scores of (Q, D) queries against the best of each video's (B, L, D) tokens; zero rows of padding take part.

    With a mask (B, L) bool, only those tokens do.
    Always in float32 or better: in bfloat16 scores would tie by the thousand.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, tokens = at_least_float32(queries), at_least_float32(tokens)
        if not len(tokens) or not len(
            queries
        ):  # a worker without videos: keep the graph, so that every gradient exists
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
        lost_by_query = lost.sum(-1, keepdim=True) / query_norm.square().masked_fill(
            query_norm < SMALLEST_NORM, torch.inf
        )
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


def fused_scores(queries: Tensor, videos: VideoEncoding, clip_weight: float) -> Tensor:
    """w_clip * S_clip + w_frame * S_frame, (Q, B), by blocks of queries: a query's scores of every token are never held for all of them."""
    return torch.cat(
        [
            clip_weight * best_cosines(part, videos.clip_tokens)
            + (1 - clip_weight) * best_cosines(part, videos.frame_tokens, videos.frame_mask)
            for part in queries.split(QUERY_BLOCK)
        ]
    )
