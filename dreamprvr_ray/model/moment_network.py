"""The network that tells which frames of a video are in the moment of a sentence, from their similarities.

It is learned from a collection's annotated windows (`training/moment_fitting.py`) and kept with a model's checkpoint.
`evaluation.moments.find_moment` works without one, too. Compared in docs/lab-notes.md, 2026-11-27.

Shapes: B curves, L frame rows of the longest one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEAR, FAR = 1.5, 4.0  # standard deviations of the Gaussians that smooth the similarities, in frame rows
INPUTS, CHANNELS, WIDTH = 5, 16, 5
DILATIONS = (1, 2, 4, 8)  # each frame sees 30 on either side
HIGHEST = 5.0  # of a height: where most frames are at the peak, others are far below
USUAL_LENGTH = 64  # in frame rows, of a video


class MomentNetwork(nn.Module):
    """Convolutions along a curve of similarities: the chance of each frame of being in the moment."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (INPUTS, *(CHANNELS for _ in DILATIONS))
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, WIDTH, padding=dilation * (WIDTH // 2), dilation=dilation)
            for before, after, dilation in zip(sizes, sizes[1:], DILATIONS, strict=False)
        )
        self.output = nn.Conv1d(CHANNELS, 1, 1)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return the logarithms of the odds (B, L) of frames by `curve_inputs` (B, 5, L), zero where `mask` (B, L) is.

        What follows the end of a curve has no influence.
        """
        inside = mask[:, None].to(inputs.dtype)
        hidden = inputs * inside
        for layer in self.layers:
            hidden = F.gelu(layer(hidden)) * inside
        odds: Tensor = self.output(hidden)[:, 0]
        return odds

    @torch.no_grad()
    def chances(self, similarities: np.ndarray) -> np.ndarray:
        """Return the chance (L,) of each frame, by its similarities (L,), which are finite and not all alike."""
        inputs = torch.from_numpy(curve_inputs(similarities))[None]
        chances: np.ndarray = self(inputs, torch.ones(1, inputs.shape[2])).sigmoid()[0].double().numpy()
        return chances


def curve_inputs(similarities: np.ndarray) -> np.ndarray:
    """Return what the network sees (5, L) float32 of similarities (L,), which are finite and not all alike.

    For each frame: its similarity, and those smoothed by `NEAR` and `FAR`, from the median (0) of the smoothed ones to
    their peak (1), at most `HIGHEST` from zero; the distance to the peak and the length of the video, in videos of the
    usual length.
    """
    near, far = (smoothed(similarities, deviation) for deviation in (NEAR, FAR))
    median, peak = float(np.median(near)), int(near.argmax())
    scale = max(float(near[peak]) - median, 1e-12)
    heights = [np.clip((values - median) / scale, -HIGHEST, HIGHEST) for values in (similarities, near, far)]
    distance = np.abs(np.arange(len(near)) - peak) / USUAL_LENGTH
    length = np.full(len(near), math.log(len(near) / USUAL_LENGTH))
    return np.stack([*heights, distance, length]).astype(np.float32)


def smoothed(values: np.ndarray, deviation: float) -> np.ndarray:
    """Return the Gaussian average (L,) of each value's surroundings; beyond the ends there is nothing."""
    reach = math.ceil(4 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    inside = slice(reach, reach + len(values))
    smooth: np.ndarray = np.convolve(values, kernel)[inside] / np.convolve(np.ones_like(values), kernel)[inside]
    return smooth
