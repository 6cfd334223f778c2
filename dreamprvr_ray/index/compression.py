"""Rows of a compact index: 4 bits for each of some principal components, so that a video takes at most 16 KB.

There are two spaces: of the model's clip and frame tokens, and of the encoder's frame rows. Their components are those
of a sample of the collection. docs/performance.md shows what this costs.

    INDEX/compression.safetensors   `<space>.basis` (d, D), `<space>.mean` (d,), `<space>.step` (d,), float32

Shapes: Q queries, n rows; D values of a row before, d components after, two in a byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from dreamprvr_ray.config_sections import CLIPS
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.evaluation.curves import QueryVectors
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.coarse import CODE_BYTES, MOMENTS, Quantizer
from dreamprvr_ray.index.parts import Block, PartContent
from dreamprvr_ray.index.windows import window_numbers
from dreamprvr_ray.storage.files import write_bytes

COMPRESSION = "compression.safetensors"
BYTES = 16_384  # of a video, at most
OTHER_BYTES = 200  # of ids, times and fingerprints
LEAST_SIZE = 8  # components
_PARTS = ("basis", "mean", "step")
_LEVELS = 16
_MIDDLE = (_LEVELS - 1) / 2
_REACH = 2.7  # standard deviations from the mean to the outermost levels: near the least error for 16 of them


@dataclass(frozen=True, eq=False)
class Space:
    """Principal components with 16 levels each.

    Attributes:
        basis: (d, D) float32, orthonormal rows; d is even.
        mean: (d,) float32, the value between the middle levels.
        step: (d,) float32, from one level to the next.
    """

    basis: np.ndarray
    mean: np.ndarray
    step: np.ndarray

    @staticmethod
    def fit(rows: np.ndarray, size: int) -> Space:
        """Return the space of `size` components in which dot products with rows (n, D) like these lose least."""
        rows = rows.astype(np.float32)
        _, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64))
        basis = np.ascontiguousarray(vectors[:, ::-1].T[:size], dtype=np.float32)
        components = rows @ basis.T
        step = np.maximum(components.std(0), 1e-6) * (2 * _REACH / _LEVELS)
        return Space(basis, components.mean(0), step.astype(np.float32))

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n, D) as codes (n, d / 2) uint8."""
        return self.quantise(rows.astype(np.float32) @ self.basis.T)

    def quantise(self, components: np.ndarray) -> np.ndarray:
        """Return components (n, d) as codes (n, d / 2)."""
        levels = np.floor((components - self.mean) / self.step) + _LEVELS // 2
        levels = np.clip(levels, 0, _LEVELS - 1).astype(np.uint8)
        half = len(self.basis) // 2
        codes: np.ndarray = levels[:, :half] | (levels[:, half:] << 4)
        return codes

    def restore(self, codes: np.ndarray) -> np.ndarray:
        """Return the components (n, d) float32 of codes (n, d / 2)."""
        levels = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.float32)
        components: np.ndarray = self.mean + (levels - _MIDDLE) * self.step
        return components

    def project(self, queries: Tensor) -> Tensor:
        """Return the components (Q, d) of queries (Q, D)."""
        return queries @ torch.from_numpy(self.basis).T

    def products(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the dot products (Q, n) float32 of projected queries (Q, d) with codes (n, d / 2)."""
        weights = queries * self.step
        low, high = np.split(weights, 2, axis=1)
        constant = queries @ self.mean - np.float32(_MIDDLE) * weights.sum(1)
        products: np.ndarray = low @ (codes & 15).astype(np.float32).T
        products += high @ (codes >> 4).astype(np.float32).T
        products += constant[:, None]
        return products


@dataclass(frozen=True, eq=False)
class Compression:
    """The spaces of an index; `model` is None for an index of an encoder alone."""

    encoder: Space
    model: Space | None

    @staticmethod
    def fit(block: Block, coarse_bytes: int = 0) -> Compression:
        """Choose the spaces for videos like those of a block.

        Args:
            block: A sample of the collection's videos.
            coarse_bytes: What the coarse stage takes of a video.
        """
        longest = np.array([block.counts.max()])
        rows = int(longest[0]) * (2 if block.frames is not None else 1) + (CLIPS if block.clips is not None else 0)
        norms = 2 * int(window_numbers(longest).sum())
        size = max(2 * (BYTES - coarse_bytes - norms - OTHER_BYTES) // rows // 8 * 8, LEAST_SIZE)
        model = None
        if block.clips is not None and block.frames is not None:
            tokens = np.concatenate([block.clips.reshape(-1, block.clips.shape[-1]), block.frames])
            model = Space.fit(tokens, min(size, tokens.shape[1] // 2 * 2))
        return Compression(Space.fit(block.features, min(size, block.features.shape[1] // 2 * 2)), model)

    def encode(self, block: Block) -> Block:
        """Return the videos of a block in the form of a compact index."""
        clips, frames = block.clips, block.frames
        if self.model is not None and clips is not None and frames is not None:
            clips = self.model.encode(clips.reshape(-1, clips.shape[-1])).reshape(len(clips), CLIPS, -1)
            frames = self.model.encode(frames)
        norms = block.norms.astype(np.float16)
        return Block(block.counts, self.encoder.encode(block.features), norms, clips, frames, block.coarse)

    def restore(self, block: Block) -> Block:
        """Return the videos with float32 rows: their components."""
        clips, frames = block.clips, block.frames
        if self.model is not None and clips is not None and frames is not None:
            clips, frames = self.model.restore(clips), self.model.restore(frames)
        return Block(block.counts, self.encoder.restore(block.features), block.norms, clips, frames)

    def project(self, queries: QueryVectors) -> QueryVectors:
        """Return queries in the spaces."""
        return QueryVectors(
            None if self.model is None or queries.model is None else self.model.project(queries.model),
            None if queries.encoder is None else self.encoder.project(queries.encoder),
        )

    def write(self, directory: Path) -> None:
        """Write the spaces into the directory of an index, atomically."""
        spaces = {"encoder": self.encoder} | ({} if self.model is None else {"model": self.model})
        tensors = {f"{name}.{part}": getattr(space, part) for name, space in spaces.items() for part in _PARTS}
        write_bytes(directory / COMPRESSION, safetensors.numpy.save(tensors))

    @staticmethod
    def read(directory: Path) -> Compression:
        """Read what `write` wrote. Raises `UserError` if it is missing or damaged."""
        path = directory / COMPRESSION
        try:
            tensors = safetensors.numpy.load_file(path)
            encoder = _space(tensors, "encoder")
            return Compression(encoder, _space(tensors, "model") if "model.basis" in tensors else None)
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path}: damaged: {first_line(error)}; remove the index and build it again") from None


@dataclass(frozen=True, eq=False)
class Compressor:
    """Brings videos into the form of a compact index."""

    compression: Compression
    quantizer: Quantizer

    @staticmethod
    def fit(block: Block, weights: ScoreWeights) -> Compressor:
        """Return what compresses videos like those of a block. Raises `UserError` if faiss is not installed."""
        compression = Compression.fit(block, MOMENTS * CODE_BYTES)
        return Compressor(compression, Quantizer.train(compression.restore(compression.encode(block)), weights))

    def compress(self, content: PartContent) -> PartContent:
        """Return encoded videos in the form of a compact index."""
        block = self.compression.encode(content.block)
        return PartContent(content.rows, replace(block, coarse=self.quantizer.encode(self.compression.restore(block))))

    def write(self, directory: Path) -> None:
        """Write it into the directory of an index; the quantizer last, so that both exist if it does."""
        self.compression.write(directory)
        self.quantizer.write(directory)

    @staticmethod
    def read(directory: Path, weights: ScoreWeights) -> Compressor:
        """Read what `write` wrote. Raises `UserError` if it is missing or damaged."""
        return Compressor(Compression.read(directory), Quantizer.read(directory, weights))


def _space(tensors: dict[str, np.ndarray], name: str) -> Space:
    basis, mean, step = (tensors[f"{name}.{part}"] for part in _PARTS)
    if basis.ndim != 2 or len(basis) % 2 or {mean.shape, step.shape} != {(len(basis),)}:
        raise ValueError(f"{name}: wrong shapes")
    if any(array.dtype != np.float32 for array in (basis, mean, step)):
        raise ValueError(f"{name}: must be float32")
    return Space(basis, mean, step)
