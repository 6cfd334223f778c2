"""Rows of a compact index: int8 in a space of fewer dimensions, so that a video takes at most 16 KB.

The space is that of the principal components (uncentred, so that dot products lose least) of a sample of the
collection's rows: one for the model's clip and frame tokens, one for the encoder's frame rows. docs/performance.md
shows what this costs.

    INDEX/compression.safetensors   `<space>.basis` (d, D) float32, `<space>.scales` (d,) float32

Shapes: n rows; D values of a row before, d after.
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
LEAST_SIZE = 8  # dimensions


@dataclass(frozen=True, eq=False)
class Space:
    """A space of fewer dimensions, in which rows are int8.

    Attributes:
        basis: (d, D) float32, orthonormal rows.
        scales: (d,) float32, the value of one step of int8.
    """

    basis: np.ndarray
    scales: np.ndarray

    @staticmethod
    def fit(rows: np.ndarray, size: int) -> Space:
        """Return the space of `size` dimensions in which dot products with rows (n, D) like these lose least."""
        rows = rows.astype(np.float32)
        _, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64))
        basis = np.ascontiguousarray(vectors[:, ::-1].T[:size], dtype=np.float32)
        largest = np.abs(rows @ basis.T).max(0)
        return Space(basis, np.maximum(largest, 1e-6).astype(np.float32) / 127)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n, D) as int8 (n, d)."""
        steps = np.rint(rows.astype(np.float32) @ self.basis.T / self.scales)
        encoded: np.ndarray = np.clip(steps, -127, 127).astype(np.int8)
        return encoded

    def restore(self, rows: np.ndarray) -> np.ndarray:
        """Return int8 rows (n, d) as float32, in the space."""
        restored: np.ndarray = rows.astype(np.float32) * self.scales
        return restored

    def project(self, queries: Tensor, per_step: bool) -> Tensor:
        """Return queries (Q, D) in the space: (Q, d); `per_step` to compare them with int8 rows."""
        projected: Tensor = queries @ torch.from_numpy(self.basis).T
        return projected * torch.from_numpy(self.scales) if per_step else projected


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
        size = max((BYTES - coarse_bytes - norms) // rows // 8 * 8, LEAST_SIZE)
        model = None
        if block.clips is not None and block.frames is not None:
            tokens = np.concatenate([block.clips.reshape(-1, block.clips.shape[-1]), block.frames])
            model = Space.fit(tokens, min(size, tokens.shape[1]))
        return Compression(Space.fit(block.features, min(size, block.features.shape[1])), model)

    def encode(self, block: Block) -> Block:
        """Return the videos of a block in the form of a compact index."""
        clips, frames = block.clips, block.frames
        if self.model is not None and clips is not None and frames is not None:
            clips = self.model.encode(clips.reshape(-1, clips.shape[-1])).reshape(len(clips), CLIPS, -1)
            frames = self.model.encode(frames)
        norms = block.norms.astype(np.float16)
        return Block(block.counts, self.encoder.encode(block.features), norms, clips, frames, block.coarse)

    def restore(self, block: Block) -> Block:
        """Return the videos with float32 rows, in the spaces."""
        clips, frames = block.clips, block.frames
        if self.model is not None and clips is not None and frames is not None:
            clips, frames = self.model.restore(clips), self.model.restore(frames)
        return Block(block.counts, self.encoder.restore(block.features), block.norms, clips, frames)

    def project(self, queries: QueryVectors, per_step: bool = False) -> QueryVectors:
        """Return queries in the spaces; `per_step` to compare them with int8 rows, else with restored ones."""
        return QueryVectors(
            None if self.model is None or queries.model is None else self.model.project(queries.model, per_step),
            None if queries.encoder is None else self.encoder.project(queries.encoder, per_step),
        )

    def write(self, directory: Path) -> None:
        """Write the spaces into the directory of an index, atomically."""
        tensors = {"encoder.basis": self.encoder.basis, "encoder.scales": self.encoder.scales}
        if self.model is not None:
            tensors |= {"model.basis": self.model.basis, "model.scales": self.model.scales}
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
    basis, scales = tensors[f"{name}.basis"], tensors[f"{name}.scales"]
    if basis.ndim != 2 or scales.shape != (len(basis),) or basis.dtype != np.float32 or scales.dtype != np.float32:
        raise ValueError(f"{name}: wrong shapes")
    return Space(basis, scales)
