"""How long a trained model takes to encode a video: the second objective `encode_ms` of a search."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from dreamprvr_ray.checkpoints.checkpoint import load_model
from dreamprvr_ray.config_sections import CLIPS, FRAMES
from dreamprvr_ray.device import best_device

VIDEOS = 64  # encoded at a time
REPETITIONS = 5


@torch.no_grad()
def measure_encode_ms(checkpoint: Path) -> float:
    """Return the milliseconds per video that a checkpoint's model takes on this machine: those of the fastest batch."""
    trained, device = load_model(checkpoint), best_device()
    model, size = trained.model.to(device), trained.experiment.data.video_size
    clips = torch.randn(VIDEOS, CLIPS, size, device=device)
    frames = torch.randn(VIDEOS, FRAMES, size, device=device)
    mask = torch.ones(VIDEOS, FRAMES, dtype=torch.bool, device=device)
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        model.encode_videos(clips, frames, mask)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / VIDEOS
