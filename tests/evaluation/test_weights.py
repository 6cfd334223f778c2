"""The choice of the encoder's weight on val, and the weights of a checkpoint."""

from __future__ import annotations

import pytest
import torch

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.weights import (
    CANDIDATES,
    TEMPERATURES,
    USUAL_WEIGHT,
    ScoreWeights,
    ValScores,
    choose_weight,
    query_losses,
)


def scores(signal: float, seed: int, queries: int = 200, videos: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random cosines in which the right video's is `signal` higher, and which videos are right."""
    random = torch.Generator().manual_seed(seed)
    right = torch.nn.functional.one_hot(torch.arange(queries) % videos, videos).bool()
    return 0.1 * torch.randn(queries, videos, generator=random) + signal * right, right


def choice(model_signal: float, encoder_signal: float) -> float:
    model, right = scores(model_signal, 1)
    encoder, _ = scores(encoder_signal, 2)
    chosen = choose_weight([ValScores(model, encoder, right)])
    losses = dict(zip(CANDIDATES, chosen.losses, strict=True))
    assert losses[chosen.weight] <= losses[1.0]
    return chosen.weight


def test_loss_is_the_cross_entropy_at_the_best_temperature() -> None:
    values, right = scores(0.2, 0)
    by_temperature = [
        torch.nn.functional.cross_entropy(values.double() / temperature, right.int().argmax(1), reduction="none")
        for temperature in TEMPERATURES
    ]
    best = min(by_temperature, key=lambda losses: float(losses.mean()))
    torch.testing.assert_close(query_losses(values, right), best)
    # Another right video takes part of the blame away.
    right[:, 5] = True
    assert (query_losses(values, right).mean() < best.mean()).item()


def test_parts_that_are_equally_good_get_the_usual_weight() -> None:
    assert USUAL_WEIGHT <= choice(0.2, 0.2) < 0.5  # half would be the best


def test_a_model_that_only_hurts_is_left_out() -> None:
    assert choice(-0.2, 0.2) == 1.0
    assert choice(0.0, 0.2) >= 0.9


def test_an_encoder_that_only_hurts_gets_little() -> None:
    assert choice(0.3, 0.0) <= 0.1


def test_several_collections_choose_one_weight() -> None:
    bad, right = scores(-0.3, 1)
    good, _ = scores(0.3, 3)
    encoder, _ = scores(0.2, 2)
    both = choose_weight([ValScores(bad, encoder, right), ValScores(good, encoder, right)])
    alone = choose_weight([ValScores(good, encoder, right)])
    assert alone.weight < both.weight <= 1.0


def test_weights_of_a_checkpoint() -> None:
    settings = load_experiment("charades", {"evaluation.encoder_weight": "auto"}).evaluation
    assert ScoreWeights.of(settings, {"encoder_weight": 0.35}, "m") == ScoreWeights(0.6, 0.35)
    assert ScoreWeights.of(load_experiment("charades").evaluation, {}, "m") == ScoreWeights(0.6, 0.0)
    for damaged in ({}, {"encoder_weight": 2}, {"encoder_weight": True}):
        with pytest.raises(UserError, match="m: damaged: 'encoder_weight' must be a number from 0 to 1"):
            ScoreWeights.of(settings, damaged, "m")
