"""What places queries and frames in one space: a trained model, or the encoder that the features come from.

Shapes: n queries or videos, L frame rows of a video, D size of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.data.batches import collate_queries, collate_videos
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.device import autocast
from dreamprvr_ray.evaluation.score_blocks import QUERY_BLOCK, VIDEO_BLOCK
from dreamprvr_ray.model.dreamprvr import DreamPRVR


class Embedder(Protocol):
    """Embeds queries and frames of a split such that cosines between them are meaningful."""

    @property
    def label(self) -> str:
        """What charts call it."""

    def queries(self, split: Split, numbers: np.ndarray) -> Tensor:
        """Return the embeddings (n, D), float32 on the CPU, of these queries."""

    def frames(self, split: Split, numbers: np.ndarray) -> list[Tensor]:
        """Return the embeddings (L, D), float32 on the CPU, of each of these videos' frames."""


@dataclass(frozen=True)
class ModelEmbedder:
    """A model in evaluation mode: its query embeddings and its frame tokens, which its frame scores compare."""

    model: DreamPRVR
    label: str

    @torch.no_grad()
    def queries(self, split: Split, numbers: np.ndarray) -> Tensor:
        """Return the query embeddings (n, D), computed in float32 as `score_split` does."""
        device = next(self.model.parameters()).device
        parts = []
        for block in _blocks(numbers, QUERY_BLOCK):
            with autocast(device, "fp32"):
                tokens, mask = collate_queries(split, block)
                parts.append(self.model.encode_queries(tokens.to(device), mask.to(device)).float().cpu())
        return torch.cat(parts) if parts else torch.zeros(0, self.model.config.hidden_size)

    @torch.no_grad()
    def frames(self, split: Split, numbers: np.ndarray) -> list[Tensor]:
        """Return the frame tokens (L, D) of each video, without padding, computed in float32 as `score_split` does."""
        device = next(self.model.parameters()).device
        found: list[Tensor] = []
        for block in _blocks(numbers, VIDEO_BLOCK):
            with autocast(device, "fp32"):
                clips, frames, mask = collate_videos(split, block, self.model.trimmed)
                encoding = self.model.encode_videos(clips.to(device), frames.to(device), mask.to(device))
            tokens = encoding.frame_tokens.float().cpu()
            found += [row[:count] for row, count in zip(tokens, split.frame_counts[block].tolist(), strict=True)]
        return found


@dataclass(frozen=True)
class EncoderEmbedder:
    """The encoder alone: the sentence vectors of queries, and the frames' own features.

    Comparing the two needs frames and queries of one encoder.
    """

    label: str = "encoder alone"

    def queries(self, split: Split, numbers: np.ndarray) -> Tensor:
        """Return the encoder's embeddings (n, Dt) of these queries' sentences, see `Split.sentences`."""
        return split.sentences(numbers)

    def frames(self, split: Split, numbers: np.ndarray) -> list[Tensor]:
        """Return the frame rows (L, Dv) of each video."""
        return [split.frames(video).float() for video in numbers.tolist()]


def _blocks(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
