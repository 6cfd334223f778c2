"""An encoder for tests: mean colours of a frame, and hashed words of a sentence. It needs no weights."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamprvr_ray.video.encoders.protocols import SentenceFeatures, Settings

NAME = "support.tiny_encoder:TinyEncoder"
LOG = "TINY_ENCODER_LOG"  # a directory: each process writes there the numbers of frames that it has encoded
SECONDS = "TINY_ENCODER_SECONDS"  # that each frame takes
SIZE = 12


class TinyEncoder:
    """A `FrameEncoder` and a `SentenceEncoder`."""

    def __init__(self, device: object = None) -> None:
        self.name, self.size, self.precision = NAME, SIZE, "fp32"
        self.version: Settings = {"library": "test", "version": 1}

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        time.sleep(len(frames) * float(os.environ.get(SECONDS, "0")))
        if folder := os.environ.get(LOG):
            with open(Path(folder) / str(os.getpid()), "a") as file:
                file.write(f"{len(frames)}\n")
        return np.stack([mean_colours(frame) for frame in frames])

    def encode_sentences(self, sentences: Sequence[str]) -> list[SentenceFeatures]:
        return [features_of(sentence) for sentence in sentences]


class FramesOnly:
    """A `FrameEncoder`."""

    def __init__(self, device: object = None) -> None:
        self.name, self.size, self.precision = "support.tiny_encoder:FramesOnly", SIZE, "fp32"
        self.version: Settings = {"library": "test"}

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([mean_colours(frame) for frame in frames])


class Failing(TinyEncoder):
    """An encoder that fails."""

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        raise RuntimeError("out of luck")


class Crashing(TinyEncoder):
    """An encoder whose process ends at the first frames, as often as a lost node may end it and more."""

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        crashes = Path(os.environ[LOG]) / "crashes"
        if not crashes.exists() or crashes.stat().st_size < 5:
            with open(crashes, "a") as file:
                file.write("0")
            os._exit(1)
        return super().encode_frames(frames)


def mean_colours(frame: np.ndarray) -> np.ndarray:
    """Return the mean colours (12,) of a frame's quarters."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    quarters = (frame[y : y + height, x : x + width] for y in (0, height) for x in (0, width))
    return np.concatenate([quarter.reshape(-1, 3).mean(0) / 255 for quarter in quarters]).astype(np.float32)


def features_of(sentence: str) -> SentenceFeatures:
    """Return random rows for the words of a sentence, always the same for a word."""
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little") for word in sentence.split()]
    tokens = np.stack([np.random.default_rng(seed).standard_normal(SIZE) for seed in seeds]).astype(np.float32)
    return SentenceFeatures(tokens, tokens.mean(0))


def encoded_frames(folder: Path) -> int:
    """Return the number of frames that all processes have encoded."""
    return sum(int(line) for path in folder.iterdir() for line in path.read_text().split())
