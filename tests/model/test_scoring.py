"""Token scores against explicit loops, their gradients against finite differences, and their edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from support import reference_model
from torch import Tensor

from dreamprvr_ray.model.scoring import best_cosines, token_scores


def random_scores_input(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    queries, tokens = torch.randn(5, 8, dtype=torch.float64), torch.randn(3, 4, 8, dtype=torch.float64)
    tokens[1, 2:] = 0  # padding
    return queries.to(dtype), tokens.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "computed", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.float32, 1e-6),
    ],
)
def test_token_scores_equal_those_of_loops(dtype: torch.dtype, computed: torch.dtype, tolerance: float) -> None:
    queries, tokens = random_scores_input(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which must not affect the scores
        scores, cosines = token_scores(queries, tokens), best_cosines(queries, tokens)
    cosine, dot = reference_model.best_scores_by_loop(queries.to(computed), tokens.to(computed))
    assert torch.equal(cosines, scores.cosine)
    torch.testing.assert_close(scores.cosine, cosine, rtol=0, atol=tolerance)
    torch.testing.assert_close(scores.dot, dot, rtol=0, atol=tolerance * 10)


def test_the_best_cosine_is_not_the_best_dot_product() -> None:
    query, tokens = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.5, 0.0], [2.0, 4.0]]])
    scores = token_scores(query, tokens)
    assert (scores.cosine.item(), scores.dot.item()) == (1.0, 2.0)


def test_zero_rows_of_padding_count() -> None:
    query, frames = torch.tensor([[1.0, 1.0]]), torch.tensor([[[-1.0, -1.0], [-1.0, 0.0]], [[-1.0, -1.0], [0.0, 0.0]]])
    scores = token_scores(query, frames)
    torch.testing.assert_close(scores.cosine, torch.tensor([[-math.sqrt(0.5), 0.0]]))
    torch.testing.assert_close(scores.dot, torch.tensor([[-1.0, 0.0]]))


@pytest.mark.parametrize(("count", "videos"), [(0, 3), (2, 0), (0, 0)])
def test_without_queries_or_videos_every_input_still_gets_a_gradient(count: int, videos: int) -> None:
    queries, tokens = torch.randn(count, 8, requires_grad=True), torch.randn(videos, 4, 8, requires_grad=True)
    scores = token_scores(queries, tokens)
    assert scores.cosine.shape == scores.dot.shape == best_cosines(queries, tokens).shape == (count, videos)
    (scores.cosine.sum() + scores.dot.sum()).backward()
    for leaf in (queries, tokens):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape and not leaf.grad.any()


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_match_finite_differences(masked: bool) -> None:
    queries, tokens = (
        x.requires_grad_() for x in (torch.randn(4, 6, dtype=torch.float64), torch.randn(3, 5, 6, dtype=torch.float64))
    )
    mask = torch.arange(5) < torch.tensor([[5], [1], [3]])

    def scores(queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        result = token_scores(queries, tokens, mask if masked else None)
        return result.cosine, result.dot

    assert torch.autograd.gradcheck(scores, (queries, tokens))
    assert torch.equal(best_cosines(queries, tokens, mask if masked else None), scores(queries, tokens)[0])


def test_gradients_of_zero_rows_are_finite() -> None:
    queries, tokens = torch.randn(2, 8), torch.zeros(3, 4, 8)
    queries[0] = 0
    queries.requires_grad_(), tokens.requires_grad_()
    scores = token_scores(queries, tokens)
    (scores.cosine.sum() + scores.dot.sum()).backward()
    assert queries.grad is not None and tokens.grad is not None
    assert queries.grad.isfinite().all() and tokens.grad.isfinite().all()
