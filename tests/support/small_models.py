"""Tiny models, and splits and batches in memory, for the tests of the core."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.config import LossConfig, LossWeights, ModelConfig, TrimFrames
from dreamprvr_ray.data.batches import Batch, collate
from dreamprvr_ray.model.dreamprvr import DreamPRVR

VIDEO_SIZE, TEXT_SIZE = 12, 10


def model_config(**changes: object) -> ModelConfig:
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
    """A model in float64 whose every weight matters: noise on top of the initialisation, which leaves biases at 0 and norms at 1."""
    torch.manual_seed(seed)
    model = DreamPRVR(model_config(**changes), VIDEO_SIZE, TEXT_SIZE, trim_frames).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


class MemorySplit:
    """What evaluation and batches ask of a `Split`, drawn from a seed."""

    def __init__(self, queries_per_video: Sequence[int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.video_size, self.text_size = VIDEO_SIZE, TEXT_SIZE
        counts = np.array(queries_per_video)
        self.first_query = np.concatenate([[0], counts.cumsum()])
        self.owner = np.repeat(np.arange(len(counts)), counts)
        self.frame_counts = random.choice([1, 2, 50, 127, 128], len(counts))
        self.token_counts = random.integers(1, 8, len(self.owner))
        self.moment_fractions = random.choice([0.1, 0.3, 0.7, np.nan], len(self.owner))
        self._clips = torch.from_numpy(random.standard_normal((len(counts), 32, VIDEO_SIZE)))
        self._frames = [torch.from_numpy(random.standard_normal((count, VIDEO_SIZE))) for count in self.frame_counts]
        self._tokens = [torch.from_numpy(random.standard_normal((count, TEXT_SIZE))) for count in self.token_counts]

    def __len__(self) -> int:
        return len(self._clips)

    def clips(self, video: int) -> Tensor:
        return self._clips[video]

    def frames(self, video: int) -> Tensor:
        return self._frames[video]

    def tokens(self, start: int, stop: int) -> list[Tensor]:
        return self._tokens[start:stop]

    def batch(self, videos: np.ndarray, dtype: torch.dtype = torch.float64, trimmed: bool = False) -> Batch:
        """These videos with their queries."""
        collated = collate(self, videos, trimmed)  # type: ignore[arg-type]
        return Batch(
            **{
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in vars(collated).items()
            }
        )

    def whole(self) -> Batch:
        return self.batch(np.arange(len(self)))


def best_tokens(queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The best token's cosine and dot product, pair by pair: (Q, D), (B, L, D) -> two of (Q, B)."""
    cosines, dots = [], []
    for query in queries:
        for video in tokens:
            products, norms = video @ query, video.norm(dim=1) * query.norm()
            cosines.append(torch.where(norms > 0, products / norms.where(norms > 0, 1.0), 0.0).max())
            dots.append(products.max())
    shape = len(queries), len(tokens)
    return torch.stack(cosines).view(shape), torch.stack(dots).view(shape)
