"""Compatibility with the `retrieve.py` of models exported by earlier versions. Use `evaluation` instead."""

from __future__ import annotations

from torch import Tensor

from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.evaluation import retrieval
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR


def score_split(model: DreamPRVR, split: Split, clip_weight: float) -> Tensor:
    """Return the fused scores (Q, V) of all queries and videos of a split."""
    return retrieval.score_split(model, split, ScoreWeights(clip_weight))
