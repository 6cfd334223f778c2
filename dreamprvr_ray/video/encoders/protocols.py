"""What an encoder is. The classes of this package implement these protocols, and so can a user's own class.

Shapes: N frames, H and W pixels, L tokens of a sentence, D values of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Settings = dict[str, str | int | float | bool]


@dataclass(frozen=True, eq=False)
class SentenceFeatures:
    """The features of one sentence."""

    tokens: np.ndarray  # (L, D) float32, at least one token and no padding; the model's queries
    sentence: np.ndarray  # (D,) float32: the encoder's own embedding of the sentence


@runtime_checkable
class FrameEncoder(Protocol):
    """Encodes frames. Results do not depend on which frames are encoded together."""

    name: str  # as `registry.open_encoder` accepts it
    size: int  # D
    version: Settings  # library, its version, a hash of the weights, settings; goes to the manifest as plain values
    precision: str  # fp32 or bf16; not part of `version`, as it depends on the device

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return the embeddings of frames, (N, D) float32, as the library computes them: not normalised.

        Args:
            frames: Images (H, W, 3) uint8 RGB, upright; each may have its own size.
        """
        ...


@runtime_checkable
class SentenceEncoder(Protocol):
    """Encodes sentences. Results do not depend on which sentences are encoded together, except for rounding."""

    name: str
    size: int
    version: Settings
    precision: str

    def encode_sentences(self, sentences: Sequence[str]) -> list[SentenceFeatures]:
        """Return the features of each sentence. A sentence beyond the encoder's limit of tokens is cut off."""
        ...
