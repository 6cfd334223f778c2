"""The curve of a sentence along a video: how similar each of its frames is, by the parts and weights of the score.

`moments.find_moment` finds the moment in it. Whoever shows or measures moments takes the curve from here, so that a
search, an evaluation and a report agree.

Shapes, in this file:
    Q  queries      L  frame rows of the video      M  clip tokens (32)
    D  hidden size of the model                     Dv  values of a feature of the encoder
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.scoring import best_cosines


@dataclass(frozen=True, eq=False)
class QueryVectors:
    """What queries are compared by; the part that has no weight in the score may be missing."""

    model: Tensor | None = None  # (Q, D), the model's embeddings of the queries
    encoder: Tensor | None = None  # (Q, Dv), the encoder's embeddings of their sentences


@dataclass(frozen=True, eq=False)
class VideoRows:
    """What a video is compared by, without padding; the part that has no weight in the score may be missing."""

    clips: Tensor | None = None  # (M, D), the model's clip tokens
    frames: Tensor | None = None  # (L, D), the model's frame tokens
    features: Tensor | None = None  # (L, Dv), the encoder's frame rows


MODEL_ALONE, ENCODER_ALONE = ScoreWeights(clip=0.0), ScoreWeights(clip=0.0, encoder=1.0)


@torch.no_grad()
def similarity_curves(queries: QueryVectors, video: VideoRows, weights: ScoreWeights) -> Tensor:
    """Return the curve (Q, L) of each query along a video, float32 on the device of the rows.

    It is the sum of the cosines with the model's frame tokens and with the encoder's frame rows, weighted as the model
    and the encoder are in the score.

    Raises:
        ValueError: A part that has a weight is missing.
    """
    curves: list[Tensor] = []
    if weights.encoder < 1:
        if queries.model is None or video.frames is None:
            raise ValueError("the model has a weight in the score: its query embeddings and frame tokens are needed")
        curves.append((1 - weights.encoder) * _cosines(queries.model, video.frames))
    if weights.encoder > 0:
        if queries.encoder is None or video.features is None:
            raise ValueError("the encoder has a weight in the score: its sentences and frame rows are needed")
        curves.append(weights.encoder * _cosines(queries.encoder, video.features))
    return torch.stack(curves).sum(0)


def _cosines(queries: Tensor, rows: Tensor) -> Tensor:
    """Return the cosines (Q, L) of queries (Q, D) with rows (L, D), computed as the scores are."""
    return best_cosines(queries, rows[:, None])
