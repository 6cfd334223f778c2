"""The weights of the parts of a retrieval score, and the choice of the encoder's weight on val.

Shapes: Q queries and V videos of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamprvr_ray.config_sections import EvaluationConfig
from dreamprvr_ray.errors import UserError

METRIC, CHOSEN = "encoder_weight", "encoder_weight_chosen"  # in a checkpoint's metrics
USUAL_WEIGHT = 0.3  # the best single weight over several collections and models (docs/lab-notes.md)
CANDIDATES = tuple(step / 20 for step in range(21))  # 1, the encoder alone, is one of them
TEMPERATURES = (0.01, 0.014, 0.02, 0.028, 0.04, 0.056, 0.08, 0.11)


@dataclass(frozen=True)
class ScoreWeights:
    """Weights of a retrieval score: (1 - encoder) (clip S_clip + (1 - clip) S_frame) + encoder S_encoder."""

    clip: float
    encoder: float = 0.0

    @staticmethod
    def of(settings: EvaluationConfig, metrics: Mapping[str, Any], path: object) -> ScoreWeights:
        """Return the weights of a checkpoint with these settings and metrics.

        Raises `UserError` naming `path` if the settings leave the encoder's weight to val and the metrics lack it.
        """
        if settings.encoder_weight != "auto":
            return ScoreWeights(settings.clip_weight, settings.encoder_weight)
        weight = metrics.get(METRIC)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            raise UserError(f"{path}: damaged: '{METRIC}' must be a number from 0 to 1, not {weight!r:.40}")
        return ScoreWeights(settings.clip_weight, float(weight))

    def combine(self, model: Tensor, encoder: Tensor) -> Tensor:
        """Return the score from the model's and the encoder's, both (Q, V)."""
        return (1 - self.encoder) * model + self.encoder * encoder


@dataclass(frozen=True, eq=False)
class ValScores:
    """Scores of a val split by the model and by the encoder, (Q, V), and which videos are right, bool (Q, V)."""

    model: Tensor
    encoder: Tensor
    right: Tensor


@dataclass(frozen=True)
class WeightChoice:
    """The chosen weight, and the mean loss of each of `CANDIDATES`, by which it was chosen."""

    weight: float
    losses: tuple[float, ...]


def choose_weight(splits: Sequence[ValScores]) -> WeightChoice:
    """Choose the encoder's weight by the val scores of one or several collections, which count equally.

    SumR of a few hundred queries jumps from weight to weight, so the criterion is smooth: `query_losses`. A candidate
    must not lose more than the encoder alone. Of those within a standard error of the best, paired by query, the one
    next to `USUAL_WEIGHT` is chosen.
    """
    losses = [
        torch.stack([query_losses(ScoreWeights(0.0, weight).combine(scores.model, scores.encoder), scores.right)
                     for weight in CANDIDATES])
        for scores in splits
    ]  # fmt: skip
    means = torch.stack([part.mean(1) for part in losses]).mean(0)
    best = int(means.argmin())
    # The standard error of the difference to the best candidate; that of a mean of independent means for several.
    variances = [(part - part[best]).var(1, correction=0) / part.shape[1] for part in losses]
    errors = torch.stack(variances).sum(0).sqrt() / len(losses)
    allowed = [
        weight
        for weight, mean, error in zip(CANDIDATES, means.tolist(), errors.tolist(), strict=True)
        if mean <= float(means[-1]) and mean <= float(means[best]) + error
    ]
    chosen = min(allowed, key=lambda weight: abs(weight - USUAL_WEIGHT))
    return WeightChoice(chosen, tuple(means.tolist()))


def query_losses(scores: Tensor, right: Tensor) -> Tensor:
    """Return the loss (Q,) of each query in finding its right videos, bool (Q, V), by the scores (Q, V), in float64.

    It is the negative logarithm of their share of softmax(score / temperature). The temperature is that of
    `TEMPERATURES` with the smallest mean loss, so that the scale of the scores does not matter.
    """
    scores = scores.double()
    losses = torch.stack(
        [
            scaled.logsumexp(1) - scaled.masked_fill(~right, -torch.inf).logsumexp(1)
            for scaled in (scores / temperature for temperature in TEMPERATURES)
        ]
    )
    return losses[int(losses.mean(1).argmin())]
