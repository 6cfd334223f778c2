"""Encoding videos into parts of an index.

Shapes: B videos, M = 32 clips, L frames, D hidden size of the model, Dv values of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dreamprvr_ray.config_sections import CLIPS, FRAMES
from dreamprvr_ray.device import autocast
from dreamprvr_ray.index.collections import PooledVideo
from dreamprvr_ray.index.parts import Block, IndexedRow, PartContent
from dreamprvr_ray.index.scoring import unit_rows
from dreamprvr_ray.index.windows import window_norms
from dreamprvr_ray.model.dreamprvr import DreamPRVR

BLOCK = 64  # videos encoded at a time, as evaluation does


def encode_videos(videos: Sequence[tuple[str, PooledVideo]], model: DreamPRVR | None) -> PartContent:
    """Return what a part holds of these videos, by their ids; `model` is None for an index of an encoder alone."""
    pooled = [video for _, video in videos]
    features = np.concatenate([video.frames for video in pooled])
    counts = np.array([len(video.frames) for video in pooled])
    norms = window_norms(features, counts)
    rows = [IndexedRow(id, video.fingerprint(), len(video.frames), video.times) for id, video in videos]
    if model is None:
        return PartContent(rows, Block(counts, features, norms))
    blocks = [_encode(model, pooled[start : start + BLOCK]) for start in range(0, len(pooled), BLOCK)]
    clips, frames = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return PartContent(rows, Block(counts, features, norms, clips, frames))


@torch.no_grad()
def _encode(model: DreamPRVR, videos: Sequence[PooledVideo]) -> tuple[np.ndarray, np.ndarray]:
    """Return the clip tokens (B, M, D) and the frame tokens (N, D) of videos, of length 1, without padding."""
    device = next(model.parameters()).device
    counts = [len(video.frames) for video in videos]
    length = max(counts) if model.trimmed else FRAMES
    clips = np.empty((len(videos), CLIPS, videos[0].clips.shape[1]), np.float32)
    frames = np.zeros((len(videos), length, videos[0].frames.shape[1]), np.float32)
    for number, video in enumerate(videos):
        clips[number] = video.clips
        frames[number, : len(video.frames)] = video.frames
    mask = torch.from_numpy(np.arange(length) < np.array(counts)[:, None])
    with autocast(device, "fp32"):
        encoding = model.encode_videos(
            torch.from_numpy(clips).to(device), torch.from_numpy(frames).to(device), mask.to(device)
        )
    frame_tokens = encoding.frame_tokens[mask.to(device)]
    return unit_rows(encoding.clip_tokens.float()).cpu().numpy(), unit_rows(frame_tokens.float()).cpu().numpy()
