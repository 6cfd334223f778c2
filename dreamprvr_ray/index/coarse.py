"""The coarse stage of a large index: which videos may be among the best, so that only these are scored exactly.

A moment's vector places the model's tokens and the encoder's windows at one time of a video side by side, weighted such
that its dot product with the two query vectors, side by side, is the score that the video would have if all parts of it
were best at that time. Each video has a few of these, quantised (`faiss`).

Shapes: V videos, N frame rows, M = 32 clips, K vectors of a video; D hidden size of the model, Dv of a feature.
"""

from __future__ import annotations

import numpy as np

from dreamprvr_ray.config_sections import CLIPS
from dreamprvr_ray.evaluation.encoder import WINDOWS
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.parts import Block


def moment_vectors(block: Block, weights: ScoreWeights) -> np.ndarray:
    """Return a vector for each clip of each video: (V, M, D + Dv) float32, of rows that are not compressed."""
    parts = []
    places = _places(block)
    if weights.encoder < 1:
        assert block.clips is not None and block.frames is not None
        frames = block.frames[places]
        parts.append((1 - weights.encoder) * (weights.clip * block.clips + (1 - weights.clip) * frames))
    if weights.encoder > 0:
        sums = np.zeros((1 + len(block.features), block.features.shape[1]))
        np.cumsum(block.features, axis=0, dtype=np.float64, out=sums[1:])
        begins, ends = block.offsets[:-1, None], block.offsets[1:, None]
        mean = np.zeros((*places.shape, block.features.shape[1]))
        for length in WINDOWS:
            own = np.minimum(length, ends - begins)
            starts = np.clip(places - own // 2, begins, ends - own)
            windows = sums[starts + own] - sums[starts]
            mean += windows / np.maximum(np.linalg.norm(windows, axis=2, keepdims=True), 1e-12)
        parts.append(weights.encoder / len(WINDOWS) * mean)
    return np.concatenate(parts, axis=2).astype(np.float32)


def _places(block: Block) -> np.ndarray:
    """Return the frame row (V, M) in the middle of each clip."""
    counts = block.counts[:, None]
    within = (np.arange(CLIPS) + 0.5) * counts / CLIPS
    places: np.ndarray = block.offsets[:-1, None] + np.minimum(within.astype(np.int64), counts - 1)
    return places
