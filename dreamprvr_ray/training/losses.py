"""Each loss on full Q x B score matrices, and their weighted sum (docs/model.md, section 3).

Only masked tensor reductions: no loops over videos or queries, and nothing that waits for the device. Everything is
computed in float32 or better.

B videos, Q queries, D hidden size; `owner[q]` is the video of query q, in ascending order; `own[q, b]` is True if query
q belongs to video b.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamprvr_ray.config_sections import LossConfig
from dreamprvr_ray.model.attention import at_least_float32

SMALLEST = 1e-6  # lower bound of 1 + cos before it is raised to a power whose gradient at 0 may be infinite


@dataclass(frozen=True)
class Scores:
    """Scores of queries against videos after the maximum over tokens; each (Q, B)."""

    clip_cosine: Tensor
    clip_dot: Tensor
    frame_cosine: Tensor
    frame_dot: Tensor


@dataclass(frozen=True)
class NegativeDraws:
    """Uniform numbers in [0, 1) that choose the negative of each row of a triplet loss."""

    clip_video: Tensor  # (B,) a query for each video
    frame_video: Tensor  # (B,)
    clip_query: Tensor  # (Q,) a video for each query
    frame_query: Tensor  # (Q,)

    @staticmethod
    def draw(videos: int, queries: int, generator: torch.Generator) -> NegativeDraws:
        """Draw on the CPU, from a CPU generator."""
        sizes = {"clip_video": videos, "frame_video": videos, "clip_query": queries, "frame_query": queries}
        return NegativeDraws(**{name: torch.rand(size, generator=generator) for name, size in sizes.items()})

    def to(self, device: torch.device | str) -> NegativeDraws:
        """Copy the draws to `device`."""
        return NegativeDraws(
            **{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        )


@dataclass(frozen=True)
class Losses:
    """Every unweighted loss, and their weighted sum `total`; all scalars."""

    clip_nce: Tensor
    clip_triplet: Tensor
    frame_nce: Tensor
    frame_triplet: Tensor
    diversity: Tensor
    similarity: Tensor
    variational: Tensor
    denoising: Tensor
    total: Tensor


def combine(
    config: LossConfig,
    scores: Scores,
    queries: Tensor,
    owner: Tensor,
    draws: NegativeDraws,
    hard: bool,
    variational: Tensor,
    denoising: Tensor,
    other_right: Tensor | None = None,
) -> Losses:
    """Compute all losses of a batch: queries (Q, D), owner (Q,) int64 and ascending.

    `hard` chooses hard negatives; `variational` and `denoising` are means over the videos. The pairs of query and video
    in `other_right` (P, 2), if given, are neither positives nor negatives.
    """
    if other_right is not None:
        scores = _without(scores, other_right)
    with torch.autocast(queries.device.type, enabled=False):
        own = owner.unsqueeze(1) == torch.arange(scores.clip_dot.shape[1], device=owner.device)
        pool = config.hard_negative_pool if hard else None
        cosines = _cosines(queries)
        clip_nce = nce(scores.clip_dot, own)
        clip_triplet = triplet(scores.clip_cosine, own, config.margin, draws.clip_video, draws.clip_query, pool)
        frame_nce = nce(scores.frame_dot, own)
        frame_triplet = triplet(scores.frame_cosine, own, config.margin, draws.frame_video, draws.frame_query, pool)
        diverse = diversity(cosines, owner, config.diversity_margin, config.diversity_scale, config.diversity_focus)
        similar = similarity(cosines, owner, config.similarity_temperature)
        variational, denoising = at_least_float32(variational), at_least_float32(denoising)
        weights = config.weights
        total = (
            weights.clip_nce * clip_nce
            + clip_triplet
            + weights.frame_nce * frame_nce
            + frame_triplet
            + weights.diversity * diverse
            + weights.similarity * similar
            + weights.variational * variational
            + weights.denoising * denoising
        )
        return Losses(clip_nce, clip_triplet, frame_nce, frame_triplet, diverse, similar, variational, denoising, total)


def _without(scores: Scores, pairs: Tensor) -> Scores:
    """Return scores that are so low for these pairs of query and video (P, 2) that they add nothing to any loss."""
    left_out = torch.zeros_like(scores.clip_dot, dtype=torch.bool)
    left_out[pairs[:, 0], pairs[:, 1]] = True
    values = {field.name: at_least_float32(getattr(scores, field.name)) for field in fields(scores)}
    return Scores(**{name: value.masked_fill(left_out, torch.finfo(value.dtype).min) for name, value in values.items()})


def nce(scores: Tensor, own: Tensor) -> Tensor:
    """Contrastive loss in both directions: scores (Q, B), own (Q, B) bool -> scalar.

    A video without queries adds nothing.
    """
    scores = at_least_float32(scores)
    hidden = torch.finfo(scores.dtype).min
    per_query = scores.logsumexp(1) - scores.masked_fill(~own, 0).sum(1)
    per_video = scores.logsumexp(0) - scores.masked_fill(~own, hidden).logsumexp(0)
    return per_query.mean() + per_video.masked_fill(~own.any(0), 0).mean()


def triplet(
    scores: Tensor, own: Tensor, margin: float, video_draws: Tensor, query_draws: Tensor, pool: int | None
) -> Tensor:
    """Triplet loss in both directions: scores (Q, B), own (Q, B) bool, draws (B,) and (Q,) -> scalar.

    If `pool` is None, the negatives are uniform among the others. Otherwise a video's negative is its hardest query,
    and a query's negative is one of its `pool` hardest videos. With a single video the loss is 0.
    """
    scores = at_least_float32(scores)
    queries, videos = scores.shape
    if videos < 2:
        return scores.sum() * 0
    counts = own.sum(0)
    positive_of_video = scores.masked_fill(~own, 0).sum(0) / counts.clamp(min=1)
    positive_of_query = scores.masked_fill(~own, 0).sum(1)
    if pool is None:
        first = own.int().argmax(0)
        query_of_video = _skip(draw_to_index(video_draws, queries - counts), first, counts)
        video_of_query = _skip(draw_to_index(query_draws, videos - 1), own.int().argmax(1), 1)
    else:
        others = scores.detach().masked_fill(own, -torch.inf)
        query_of_video = others.argmax(0)
        hardest = others.topk(min(pool, videos - 1), dim=1).indices
        video_of_query = hardest.gather(1, draw_to_index(query_draws, hardest.shape[1]).unsqueeze(1)).squeeze(1)
    negative_of_video = scores.gather(0, query_of_video.unsqueeze(0)).squeeze(0)
    negative_of_query = scores.gather(1, video_of_query.unsqueeze(1)).squeeze(1)
    per_video = F.relu(margin + negative_of_video - positive_of_video).masked_fill(counts == 0, 0)
    return per_video.mean() + F.relu(margin + negative_of_query - positive_of_query).mean()


def diversity(cosines: Tensor, owner: Tensor, margin: float, scale: float, focus: float) -> Tensor:
    """Push queries of the same video apart: cosines (Q, Q) between queries, owner (Q,) -> scalar."""
    penalties = (1 + cosines).clamp(min=SMALLEST) ** focus * F.softplus(scale * (cosines + margin))
    return penalties.masked_fill(~_same_video(owner), 0).sum() / len(owner)


def similarity(cosines: Tensor, owner: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss between queries; those of the same video are positives: (Q, Q), (Q,) -> scalar."""
    itself = torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    positive = _same_video(owner)
    logits = (cosines / temperature).masked_fill(itself, torch.finfo(cosines.dtype).min)
    surprise = logits.logsumexp(1, keepdim=True) - logits
    counts = positive.sum(1)
    per_query = surprise.masked_fill(~positive, 0).sum(1) / counts.clamp(min=1)
    return per_query.sum() / (counts > 0).sum().clamp(min=1)


def _cosines(queries: Tensor) -> Tensor:
    """Cosines between all queries: (Q, D) -> (Q, Q)."""
    unit = F.normalize(at_least_float32(queries), dim=1)
    return unit @ unit.T


def _same_video(owner: Tensor) -> Tensor:
    """Mask (Q, Q) of pairs of different queries of the same video."""
    itself = torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    return (owner.unsqueeze(0) == owner.unsqueeze(1)) & ~itself


def draw_to_index(draws: Tensor, count: Tensor | int) -> Tensor:
    """Map uniform numbers in [0, 1) to indices 0 .. count - 1."""
    return (draws * count).long()  # float32 never rounds u * n up to n


def _skip(indices: Tensor, first: Tensor, count: Tensor | int) -> Tensor:
    """Map indices among the others to indices among all, by skipping the `count` own ones that start at `first`."""
    return torch.where(indices >= first, indices + count, indices)
