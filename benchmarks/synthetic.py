"""Random batches of any size, for benchmarks that do not need real features."""

from __future__ import annotations

import torch

from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS, DataConfig
from dreamprvr_ray.data.batches import Batch


def random_batch(data: DataConfig, videos: int, queries_per_video: int, seed: int = 0, shortest: int = 40) -> Batch:
    """Return a batch of videos with `shortest` to 128 frames, and queries with 8 to 30 tokens."""
    random = torch.Generator().manual_seed(seed)
    queries = videos * queries_per_video
    frames = torch.randint(shortest, FRAMES + 1, (videos, 1), generator=random)
    tokens = torch.randint(8, QUERY_TOKENS + 1, (queries, 1), generator=random)
    frame_mask, token_mask = torch.arange(FRAMES) < frames, torch.arange(QUERY_TOKENS) < tokens
    return Batch(
        clips=torch.randn(videos, CLIPS, data.video_size, generator=random),
        frames=torch.randn(videos, FRAMES, data.video_size, generator=random) * frame_mask.unsqueeze(-1),
        frame_mask=frame_mask,
        tokens=torch.randn(queries, QUERY_TOKENS, data.text_size, generator=random) * token_mask.unsqueeze(-1),
        token_mask=token_mask,
        owner=torch.arange(videos).repeat_interleave(queries_per_video),
    )
