"""How long a trained model takes to encode a video: the second objective `encode_ms` of a search."""

from __future__ import annotations

from pathlib import Path

from dreamprvr_ray.checkpoints.checkpoint import load_model
from dreamprvr_ray.device import best_device
from dreamprvr_ray.training.encoding_cost import BATCH, time_videos


def measure_encode_ms(checkpoint: Path) -> float:
    """Return the milliseconds per video that a checkpoint's model takes on this machine: those of the fastest batch."""
    trained = load_model(checkpoint)
    return 1000 * min(time_videos(trained.model.to(best_device()))) / BATCH
