"""The model's own score of queries against encoded videos: that of `evaluation.retrieval.score_split`.

Shapes: Q queries; V videos and N frame rows of a block; D hidden size of the model, Dv values of a feature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from dreamprvr_ray.checkpoints.checkpoint import METRICS, TrainedModel
from dreamprvr_ray.config_sections import CLIPS, FRAMES
from dreamprvr_ray.evaluation.curves import QueryVectors
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.compression import Compression, Space
from dreamprvr_ray.index.parts import Block
from dreamprvr_ray.index.windows import window_scores
from dreamprvr_ray.model.scoring import MIN_NORM


def score_weights(trained: TrainedModel | None, path: Path) -> ScoreWeights:
    """Return the weights of the score's parts: those of the model at `path`, or of the encoder alone."""
    if trained is None:
        return ScoreWeights(0.0, 1.0)
    return ScoreWeights.of(trained.experiment.evaluation, trained.metrics, f"{path}/{METRICS}")


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows (n, D) divided by their norms, as cosines divide."""
    units: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp_min(MIN_NORM)
    return units


def block_scores(
    block: Block,
    queries: QueryVectors,
    weights: ScoreWeights,
    padding_counts: bool,
    compression: Compression | None = None,
) -> np.ndarray:
    """Return the scores (Q, V) float32 of queries against the videos of a block.

    Args:
        block: The videos.
        queries: Vectors of length 1; projected, if the rows are compressed.
        weights: Of the parts of the score.
        padding_counts: Whether the zero rows that fill short videos up to 128 frames count as frames, as they do for
            models that do not trim frames.
        compression: Of the rows; None if they are not compressed.
    """
    model_space, encoder_space = (None, None) if compression is None else (compression.model, compression.encoder)
    scores: np.ndarray = np.zeros(1, np.float32)
    if weights.encoder < 1:
        assert queries.model is not None and block.clips is not None and block.frames is not None
        clips = _products(queries.model, block.clips.reshape(-1, block.clips.shape[-1]), model_space)
        best_clip = clips.reshape(len(clips), -1, CLIPS).max(2)
        best_frame = np.maximum.reduceat(
            _products(queries.model, block.frames, model_space), block.offsets[:-1], axis=1
        )
        if padding_counts:
            best_frame = np.where(block.counts < FRAMES, np.maximum(best_frame, 0), best_frame)
        model = weights.clip * best_clip + (1 - weights.clip) * best_frame
        scores = (1 - weights.encoder) * model
    if weights.encoder > 0:
        assert queries.encoder is not None
        products = _products(queries.encoder, block.features, encoder_space)
        scores = scores + weights.encoder * window_scores(products, block.windows, block.norms)
    result: np.ndarray = scores.astype(np.float32)
    return result


def _products(queries: Tensor, rows: np.ndarray, space: Space | None) -> np.ndarray:
    """Return the dot products (Q, n) of queries with rows, in float32."""
    if space is not None:
        return space.products(queries.numpy(), rows)
    # numpy's: torch warns about mapped files, which cannot be written.
    products: np.ndarray = queries.numpy() @ np.asarray(rows, dtype=np.float32).T
    return products
