"""The curve of a sentence along a video."""

from __future__ import annotations

import pytest
import torch

from dreamprvr_ray.evaluation.curves import QueryVectors, VideoRows, similarity_curves
from dreamprvr_ray.evaluation.weights import ScoreWeights

QUERIES = QueryVectors(torch.randn(3, 8), torch.randn(3, 5))
VIDEO = VideoRows(torch.randn(32, 8), torch.randn(7, 8), torch.randn(7, 5))


def cosines(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(queries[:, None], rows[None], dim=2)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_model_and_encoder_have_the_weights_of_the_score(weight: float) -> None:
    assert QUERIES.model is not None and QUERIES.encoder is not None
    assert VIDEO.frames is not None and VIDEO.features is not None
    model, encoder = cosines(QUERIES.model, VIDEO.frames), cosines(QUERIES.encoder, VIDEO.features)
    curves = similarity_curves(QUERIES, VIDEO, ScoreWeights(0.5, weight))
    torch.testing.assert_close(curves, (1 - weight) * model + weight * encoder)


def test_a_part_without_weight_may_be_missing() -> None:
    model_only = similarity_curves(QueryVectors(QUERIES.model), VideoRows(frames=VIDEO.frames), ScoreWeights(0.5))
    torch.testing.assert_close(model_only, similarity_curves(QUERIES, VIDEO, ScoreWeights(0.5)))
    with pytest.raises(ValueError, match="the encoder has a weight"):
        similarity_curves(QueryVectors(QUERIES.model), VideoRows(frames=VIDEO.frames), ScoreWeights(0.5, 0.1))
    with pytest.raises(ValueError, match="the model has a weight"):
        similarity_curves(QueryVectors(None, QUERIES.encoder), VIDEO, ScoreWeights(0.5, 0.9))
