"""The coarse stage of a compact index: which videos may be among the best, so that only these are scored exactly.

A moment vector places the model's tokens and the encoder's windows at one time of a video side by side, weighted such
that its dot product with the two query vectors, side by side, is the score that the video would have if all parts of
the score were best at that time. Each video has a few of them as product-quantised codes, all of which faiss compares
with a query: videos can be added and removed without training again.

    INDEX/coarse.safetensors   `basis` (d, E) float32; `centroids` (d / 2, 16, 2) float32, for each pair of dimensions

Shapes: V videos, K moment vectors of a video, B bytes of a code; E values of a moment vector before, d after.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from dreamprvr_ray.config_sections import CLIPS
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.evaluation.curves import QueryVectors
from dreamprvr_ray.evaluation.encoder import WINDOWS
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.parts import Block
from dreamprvr_ray.storage.files import write_bytes

COARSE = "coarse.safetensors"
MOMENTS = 16  # K: every other clip
SIZE = 128  # d
CODE_BYTES = 32  # B: 64 pairs of dimensions, 4 bits each
LEAST_TRAINED = 1024  # moment vectors
_SEED = 0  # of the rotation and the training


def require_faiss() -> None:
    """Raise `UserError` if faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError("a compact index requires faiss; install with pip install 'dreamprvr_ray[index]'")


def moment_vectors(block: Block, weights: ScoreWeights) -> np.ndarray:
    """Return moment vectors (V, K, E) float32 of videos with float rows, evenly spaced in each video."""
    counts = block.counts[:, None]
    middles = (np.arange(MOMENTS) + 0.5) / MOMENTS
    begins, ends = block.offsets[:-1, None], block.offsets[1:, None]
    places = begins + np.minimum((middles * counts).astype(np.int64), counts - 1)
    parts = []
    if weights.encoder < 1:
        assert block.clips is not None and block.frames is not None
        clips = block.clips[:, (middles * CLIPS).astype(np.int64)]
        frames = block.frames[places]
        parts.append((1 - weights.encoder) * (weights.clip * clips + (1 - weights.clip) * frames))
    if weights.encoder > 0:
        sums = np.zeros((1 + len(block.features), block.features.shape[1]), np.float64)
        np.cumsum(block.features, axis=0, out=sums[1:])
        total: np.ndarray = np.zeros((*places.shape, block.features.shape[1]))
        for length in WINDOWS:
            own = np.minimum(length, counts)
            starts = np.clip(places - own // 2, begins, ends - own)
            windows = sums[starts + own] - sums[starts]
            total += windows / np.maximum(np.linalg.norm(windows, axis=2, keepdims=True), 1e-12)
        parts.append(weights.encoder / len(WINDOWS) * total)
    return np.concatenate(parts, axis=2).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Makes codes of moment vectors.

    Attributes:
        basis: (d, E) float32: principal components of moment vectors, rotated so that they vary equally.
        centroids: (d / 2, 16, 2) float32, of each pair of dimensions.
        weights: Of the score's parts.
    """

    basis: np.ndarray
    centroids: np.ndarray
    weights: ScoreWeights

    @staticmethod
    def train(block: Block, weights: ScoreWeights) -> Quantizer:
        """Return a quantizer for videos like those of a block. Raises `UserError` as `require_faiss` does."""
        require_faiss()
        import faiss

        vectors = moment_vectors(block, weights)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        size = min(SIZE, vectors.shape[1] // 2 * 2)
        _, components = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
        random = np.random.default_rng(_SEED)
        rotation, _ = np.linalg.qr(random.standard_normal((size, size)))
        basis = (rotation @ components[:, ::-1].T[:size]).astype(np.float32)
        projected = vectors @ basis.T
        if len(projected) < LEAST_TRAINED:  # faiss warns about fewer
            projected = projected[np.arange(LEAST_TRAINED) % len(projected)]
        index = faiss.IndexPQ(size, size // 2, 4, faiss.METRIC_INNER_PRODUCT)
        index.train(projected)
        centroids = faiss.vector_to_array(index.pq.centroids).reshape(size // 2, 16, 2)
        return Quantizer(basis, centroids, weights)

    def encode(self, block: Block) -> np.ndarray:
        """Return the codes (V, K, B) uint8 of videos with float rows."""
        vectors = moment_vectors(block, self.weights)
        codes: np.ndarray = self.index().sa_encode(vectors.reshape(-1, vectors.shape[-1]) @ self.basis.T)
        return codes.reshape(len(block), MOMENTS, -1)

    def index(self) -> Any:
        """Return an empty faiss index. Raises `UserError` as `require_faiss` does."""
        require_faiss()
        import faiss

        index = faiss.IndexPQ(len(self.basis), len(self.centroids), 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(self.centroids.ravel(), index.pq.centroids)
        index.is_trained = True
        return index

    def write(self, directory: Path) -> None:
        """Write the quantizer into the directory of an index, atomically."""
        write_bytes(directory / COARSE, safetensors.numpy.save({"basis": self.basis, "centroids": self.centroids}))

    @staticmethod
    def read(directory: Path, weights: ScoreWeights) -> Quantizer:
        """Read what `write` wrote. Raises `UserError` if it is missing or damaged."""
        path = directory / COARSE
        try:
            tensors = safetensors.numpy.load_file(path)
            basis, centroids = tensors["basis"], tensors["centroids"]
            if basis.ndim != 2 or centroids.shape != (len(basis) // 2, 16, 2) or basis.dtype != centroids.dtype:
                raise ValueError("wrong shapes")
            return Quantizer(basis, centroids, weights)
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path}: damaged: {first_line(error)}; remove the index and build it again") from None


class CoarseStage:
    """The codes of all videos of an index, in memory."""

    def __init__(self, quantizer: Quantizer, codes: Sequence[np.ndarray]) -> None:
        """Take the codes (V, K, B) of each part."""
        import faiss

        index = quantizer.index()
        for each in codes:
            index.add_sa_codes(np.ascontiguousarray(each).reshape(-1, each.shape[-1]))
        self._quantizer, self._index = quantizer, faiss.IndexPQFastScan(index)

    def candidates(self, queries: QueryVectors, count: int) -> list[np.ndarray]:
        """Return the numbers of the `count` videos that may answer each query best, ascending; or a few more."""
        weights = self._quantizer.weights
        used = [each for each, weight in ((queries.model, 1 - weights.encoder), (queries.encoder, weights.encoder))
                if each is not None and weight > 0]  # fmt: skip
        vectors = torch.cat(used, dim=1)
        projected = vectors.numpy() @ self._quantizer.basis.T
        # Several moment vectors of a video are often among the best.
        _, numbers = self._index.search(np.ascontiguousarray(projected), min(4 * count, self._index.ntotal))
        found = []
        for own in numbers:
            videos = own[own >= 0] // MOMENTS
            _, first = np.unique(videos, return_index=True)
            found.append(np.sort(videos[np.sort(first)[:count]]))
        return found
