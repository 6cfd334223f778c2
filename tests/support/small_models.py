"""Small models and their configuration, and a small split in memory, for tests that compare numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.config_sections import LossConfig, LossWeights, ModelConfig, TrimFrames
from dreamprvr_ray.data.batches import Batch, collate
from dreamprvr_ray.model.dreamprvr import DreamPRVR

VIDEO_SIZE, TEXT_SIZE = 12, 10


def model_config(**changes: object) -> ModelConfig:
    """Return a small model's configuration, without dropout, with `changes` to it."""
    values = {
        "registers": 3,
        "diffusion_steps": 2,
        "hidden_size": 16,
        "heads": 2,
        "branches": 2,
        "fusion_temperature": 0.2,
    }
    return ModelConfig(**({"dropout": 0.0, "input_dropout": 0.0} | values | changes))


def loss_config(**changes: object) -> LossConfig:
    """Return a configuration in which every loss has a different weight, with `changes` to it."""
    weights = LossWeights(clip_nce=0.5, frame_nce=0.25, diversity=0.125, similarity=2.0, variational=3.0, denoising=4.0)
    values = {
        "weights": weights,
        "margin": 0.2,
        "diversity_margin": 0.15,
        "diversity_scale": 8.0,
        "diversity_focus": 1.0,
        "similarity_temperature": 0.2,
        "hard_negative_pool": 2,
    }
    return LossConfig(**(values | changes))


def build(seed: int = 0, trim_frames: TrimFrames = "exact", **changes: object) -> DreamPRVR:
    """Return a float64 model with noise on all weights, so that biases and norms (initially 0 and 1) matter too."""
    torch.manual_seed(seed)
    model = DreamPRVR(model_config(**changes), VIDEO_SIZE, TEXT_SIZE, trim_frames).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


class MemorySplit:
    """A stand-in for `data.shards.Split`: random features in memory, with 1, 2, 50, 127 or 128 frames per video."""

    def __init__(self, queries_per_video: Sequence[int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.video_size, self.text_size = VIDEO_SIZE, TEXT_SIZE
        counts = np.array(queries_per_video)
        self.first_query = np.concatenate([[0], counts.cumsum()])
        self.owner = np.repeat(np.arange(len(counts)), counts)
        self.right_videos: tuple[np.ndarray, np.ndarray] | None = None
        self.frame_counts = random.choice([1, 2, 50, 127, 128], len(counts))
        self.token_counts = random.integers(1, 8, len(self.owner))
        self.right_videos = getattr(self, "right_videos", None)
        self.moment_windows: list[np.ndarray] | None = None
        self.moment_fractions = random.choice([0.1, 0.3, 0.7, np.nan], len(self.owner))
        self._clips = torch.from_numpy(random.standard_normal((len(counts), 32, VIDEO_SIZE)))
        self._frames = [torch.from_numpy(random.standard_normal((count, VIDEO_SIZE))) for count in self.frame_counts]
        self._tokens = [torch.from_numpy(random.standard_normal((count, TEXT_SIZE))) for count in self.token_counts]

    def __len__(self) -> int:
        return len(self._clips)

    def clips(self, video: int) -> Tensor:
        """Return (32, VIDEO_SIZE)."""
        return self._clips[video]

    def frames(self, video: int) -> Tensor:
        """Return (frames, VIDEO_SIZE)."""
        return self._frames[video]

    def tokens(self, start: int, stop: int) -> list[Tensor]:
        """Return the tokens of the queries start, ..., stop - 1, each (tokens, TEXT_SIZE)."""
        return self._tokens[start:stop]

    def batch(self, videos: np.ndarray, dtype: torch.dtype = torch.float64, trimmed: bool = False) -> Batch:
        """Return a batch of these videos and their queries, frames `trimmed` to the longest video or padded to 128."""
        collated = collate(self, videos, trimmed)  # type: ignore[arg-type]
        return Batch(
            **{
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in vars(collated).items()
            }
        )

    def whole(self) -> Batch:
        """Return all videos as one batch."""
        return self.batch(np.arange(len(self)))
