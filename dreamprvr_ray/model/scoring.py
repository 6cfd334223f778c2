"""Scores of queries against the tokens of videos (docs/model.md, section 2, "Scores").

Shapes, in this file:
    Q  queries                    B  videos
    L  tokens of a video          D  hidden size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamprvr_ray.model.attention import at_least_float32
from dreamprvr_ray.model.dreamprvr import VideoEncoding

QUERY_BLOCK = 512  # queries scored at a time
MIN_NORM = 1e-12  # cosines divide by at least this norm
CACHED_PRODUCTS = 2**19  # of queries and tokens, computed at a time on a CPU: their maxima are found in its cache


@dataclass(frozen=True)
class TokenScores:
    """The largest cosine and the largest dot product over a video's tokens, in float32 (float64 for float64 input)."""

    cosine: Tensor  # (Q, B)
    dot: Tensor  # (Q, B)


def token_scores(queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> TokenScores:
    """Return the scores of queries (Q, D) against the best of each video's tokens (B, L, D).

    With a mask (B, L) bool, only tokens where it is true count; without one, all do, including the zero rows of
    padding. Scores are always computed in float32 or better, because in bfloat16 thousands of them would tie.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, tokens = at_least_float32(queries), at_least_float32(tokens)
        if not len(tokens) or not len(queries):
            # A worker without videos. Its scores stay part of the graph, so that every parameter gets a gradient.
            empty = (queries.sum() + tokens.sum()) * queries.new_zeros(len(queries), len(tokens))
            return TokenScores(empty, empty)
        dot, cosine = _BestTokens.apply(queries, tokens, mask)
        return TokenScores(cosine, dot)


@torch.no_grad()
def best_cosines(queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return only the cosines (Q, B) of `token_scores`, without gradients. Evaluation needs nothing else."""
    with torch.autocast(queries.device.type, enabled=False):
        queries, tokens = at_least_float32(queries), at_least_float32(tokens)
        if not len(tokens) or not len(queries):
            return queries.new_zeros(len(queries), len(tokens))
        videos = len(tokens)
        if tokens.device.type == "cpu":
            videos = max(1, CACHED_PRODUCTS // (len(queries) * tokens.shape[1]))
        norms = tokens.norm(dim=-1).clamp_min(MIN_NORM).split(videos)
        masks = [None] * len(norms) if mask is None else mask.split(videos)
        best = torch.cat(
            [
                _products(queries, own, own_mask).div_(own_norms).amax(-1)
                for own, own_mask, own_norms in zip(tokens.split(videos), masks, norms, strict=True)
            ],
            1,
        )
        return best.div_(queries.norm(dim=-1, keepdim=True).clamp_min(MIN_NORM))


def _products(queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the dot products (Q, B, L), -inf where the mask is false."""
    products: Tensor = (queries @ tokens.flatten(0, 1).T).view(len(queries), *tokens.shape[:2])
    if mask is not None:
        products += torch.zeros(mask.shape, dtype=products.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    return products


class _BestTokens(torch.autograd.Function):
    """The largest dot product and the largest cosine of each query over each video's tokens.

    Only the best tokens have gradients. Autograd would read and write the scores of all tokens about twenty times to
    compute them.
    """

    @staticmethod
    def forward(context: Any, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """queries (Q, D), tokens (B, L, D), mask (B, L) or None -> dot products and cosines (Q, B)."""
        products = _products(queries, tokens, mask)
        query_norm, token_norm = queries.norm(dim=-1, keepdim=True), tokens.norm(dim=-1)
        dot, best_dot = products.max(-1, keepdim=True)
        cosine, best_cosine = products.div_(token_norm.clamp_min(MIN_NORM)).max(-1, keepdim=True)
        cosine = cosine.squeeze(-1) / query_norm.clamp_min(MIN_NORM)
        context.save_for_backward(queries, tokens, query_norm, token_norm, cosine, best_dot, best_cosine)
        return dot.squeeze(-1), cosine

    @staticmethod
    def backward(context: Any, d_dot: Tensor, d_cosine: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        queries, tokens, query_norm, token_norm, cosine, best_dot, best_cosine = context.saved_tensors
        d_products = queries.new_zeros(len(queries), *tokens.shape[:2])
        # The gradients through the norms that cosines divide by. Norms that are clamped to MIN_NORM have none.
        weighted = d_cosine * cosine
        through_query_norm = weighted.sum(-1, keepdim=True) / query_norm.square().masked_fill(
            query_norm < MIN_NORM, torch.inf
        )
        through_token_norm = d_products.scatter_(-1, best_cosine, weighted.unsqueeze(-1)).sum(0)
        through_token_norm /= token_norm.square().masked_fill(token_norm < MIN_NORM, torch.inf)
        d_cosine = (d_cosine / query_norm.clamp_min(MIN_NORM)).unsqueeze(-1)
        # Within one call no two entries have the same index, so the result is deterministic on a GPU too. `scatter_`
        # overwrites the entries that the buffer holds from above.
        d_products.scatter_(-1, best_cosine, d_cosine / _at_best(token_norm.clamp_min(MIN_NORM), best_cosine))
        d_products = d_products.scatter_add_(-1, best_dot, d_dot.unsqueeze(-1)).flatten(1)
        d_queries = d_products @ tokens.flatten(0, 1) - queries * through_query_norm
        d_tokens = (d_products.T @ queries).view_as(tokens) - tokens * through_token_norm.unsqueeze(-1)
        return d_queries, d_tokens, None


def _at_best(values: Tensor, best: Tensor) -> Tensor:
    """Return the entries of (B, L) at the indices (Q, B, 1): (Q, B, 1)."""
    return values.expand(len(best), -1, -1).gather(-1, best)


def fused_scores(queries: Tensor, videos: VideoEncoding, clip_weight: float) -> Tensor:
    """Return the retrieval scores w_clip * S_clip + w_frame * S_frame, (Q, B), with w_frame = 1 - w_clip.

    Blocks of `QUERY_BLOCK` queries limit the memory: scores of single tokens, (Q, B, L), never exist for all queries.
    """
    return torch.cat(
        [
            clip_weight * best_cosines(part, videos.clip_tokens)
            + (1 - clip_weight) * best_cosines(part, videos.frame_tokens, videos.frame_mask)
            for part in queries.split(QUERY_BLOCK)
        ]
    )
