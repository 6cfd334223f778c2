"""Scores of all queries of a split against all its videos, and their evaluation.

Shapes: Q queries, B or V videos, L tokens of a video, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.data.batches import collate_queries, collate_videos
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.device import autocast
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.encoder import compare, encoder_scores
from dreamprvr_ray.evaluation.metrics import Retrieval
from dreamprvr_ray.evaluation.ranks import Ranks, exact_ranks, summarise
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR, VideoEncoding
from dreamprvr_ray.model.scoring import fused_scores

QUERY_BLOCK = 512  # queries encoded and scored at a time
VIDEO_BLOCK = 64  # videos encoded and scored at a time

# Receives the numbers (B,) of videos, the embeddings (Q, D) of all queries, and the encoding of the videos.
OnEncoded = Callable[[np.ndarray, Tensor, VideoEncoding], None]


class ScoresNotFinite(UserError):
    """Some scores of a split are NaN or infinite, so that ranks would have no meaning."""


@torch.no_grad()
def evaluate(model: DreamPRVR, split: Split, weights: ScoreWeights, workers: Workers | None = None) -> Retrieval:
    """Evaluate the retrieval of all queries of a split among all its videos, scored by `score_split`.

    Every worker gets the whole result. Raises `ScoresNotFinite` as `score_split`.
    """
    ranks = rank_queries(score_split(model, split, weights, workers), split)
    return summarise(ranks, len(split), split.moment_fractions)


def rank_queries(scores: Tensor, split: Split) -> Ranks:
    """Rank the right videos of each query of a split among its scores (Q, V), as `exact_ranks` does."""
    if split.right_videos is None:
        return exact_ranks(scores, torch.from_numpy(np.array(split.owner)).to(scores.device))
    offsets, right = (torch.from_numpy(numbers).to(scores.device) for numbers in split.right_videos)
    return exact_ranks(scores, right, offsets)


@torch.no_grad()
def score_split(
    model: DreamPRVR,
    split: Split,
    weights: ScoreWeights,
    workers: Workers | None = None,
    on_encoded: OnEncoded | None = None,
) -> Tensor:
    """Return the fused scores (Q, V) of all queries and videos of a split, on the model's device and on every worker.

    Where the encoder has a weight, its own score is a part of them; the features must then be of one encoder.

    The workers divide the videos and the queries among them. The model's training mode is restored afterwards.
    `on_encoded` receives each block of this worker's videos.

    Scores are computed in float32, whatever the precision of the training: autocast is off. Raises `ScoresNotFinite`
    if any score is NaN or infinite.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with autocast(device, "fp32"):
            scores = _score_split(model, split, weights.clip, workers or Workers(), on_encoded)
    finally:
        model.train(training)
    if not scores.isfinite().all():
        count = int((~scores.isfinite()).any(1).sum())
        raise ScoresNotFinite(f"split {split.name}: {count} of {len(scores)} queries have scores that are not finite")
    return weights.combine(scores, encoder_scores(split, device, workers)) if weights.encoder else scores


@torch.no_grad()
def score_between(
    model: DreamPRVR,
    queries: Split,
    query_numbers: np.ndarray,
    videos: Split,
    video_numbers: np.ndarray,
    weights: ScoreWeights,
) -> Tensor:
    """Return the fused scores (query_numbers, video_numbers) of queries of one split and videos of another.

    They are those that `score_split` would give if the videos were of the queries' split. The model is left in
    evaluation mode.
    """
    device = next(model.parameters()).device
    model.eval()
    with autocast(device, "fp32"):
        embeddings = _encode_queries(model, queries, query_numbers)
        scores = _score_videos(model, embeddings, videos, video_numbers, weights.clip)
    if not weights.encoder:
        return scores
    (encoder,) = compare(videos, ["best windows"], device, video_numbers, queries.sentences(query_numbers))
    return weights.combine(scores, encoder)


def _score_split(
    model: DreamPRVR, split: Split, clip_weight: float, workers: Workers, on_encoded: OnEncoded | None
) -> Tensor:
    query_parts = workers.divide(np.arange(len(split.owner)))
    video_parts = workers.divide(np.arange(len(split)))
    own_queries = _encode_queries(model, split, query_parts[workers.rank])
    queries = workers.gather_for_same_loss(own_queries, [len(part) for part in query_parts])
    own_columns = _score_videos(model, queries, split, video_parts[workers.rank], clip_weight, on_encoded)
    return workers.gather_for_same_loss(own_columns.T.contiguous(), [len(part) for part in video_parts]).T


def _encode_queries(model: DreamPRVR, split: Split, queries: np.ndarray) -> Tensor:
    """Return the embeddings (queries, D) of these queries, which are numbers in the split."""
    device, embeddings = next(model.parameters()).device, []
    for block in _blocks(queries, QUERY_BLOCK):
        with torch.autocast("cpu", enabled=False):  # autocast's concatenation rejects the shards' float16 rows
            tokens, mask = collate_queries(split, block)
        embeddings.append(model.encode_queries(tokens.to(device), mask.to(device)).float())
    return torch.cat(embeddings) if embeddings else torch.zeros(0, model.config.hidden_size, device=device)


def _score_videos(
    model: DreamPRVR,
    queries: Tensor,
    split: Split,
    videos: np.ndarray,
    clip_weight: float,
    on_encoded: OnEncoded | None = None,
) -> Tensor:
    """Return the model's scores (Q, videos) of query embeddings (Q, D) and these videos, numbers in the split."""
    device = queries.device
    columns = torch.zeros(len(queries), len(videos), device=device)
    # With trimmed frames a block is as long as its longest video: put videos of similar length into the same block.
    order = np.argsort(split.frame_counts[videos], kind="stable") if model.trimmed else np.arange(len(videos))
    for block in _blocks(order, VIDEO_BLOCK):
        clips, frames, mask = collate_videos(split, videos[block], model.trimmed)
        encoding = model.encode_videos(clips.to(device), frames.to(device), mask.to(device))
        columns[:, torch.from_numpy(block).to(device)] = fused_scores(queries, encoding, clip_weight)
        if on_encoded is not None:
            on_encoded(videos[block], queries, encoding)
    return columns


def _blocks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[start : start + size] for start in range(0, len(indices), size))
