"""What it costs to use a trained model: its size, and the work, time and memory of an encoded video and query."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.checkpoints.checkpoint import METRICS, TrainedModel
from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.device import best_device
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.flops import encoding_gflop

BATCH = 64  # videos or queries encoded at a time
REPETITIONS = 5
BYTES_PER_VALUE = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class EncodingCost:
    """The cost of encoding with a model, and of storing what it encoded.

    A video is stored as its clip and frame tokens, which is what queries are scored against; where the encoder's own
    score is a part of the model's, also as its rows of features and their mean. GFLOP count the matrix products that
    docs/model.md specifies.
    """

    parameters: int  # trainable
    gflop_per_video: float
    gflop_per_query: float
    ms_per_video: float  # the median of several batches, with 128 frames per video
    ms_per_query: float  # the same, with 30 tokens per query
    batch: int  # how many are encoded at a time
    device: str  # on which the times were measured
    tokens_per_video: float  # mean of a split's videos, or the most that a video has
    bytes_per_video: dict[str, float]  # of a stored video, by precision
    stores_features: bool = False  # whether this includes features, for the encoder's own score

    def to_dict(self) -> dict[str, Any]:
        """Return the cost by the names of the commands' JSON output."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return a summary for people."""
        features = " and its features" if self.stores_features else ""
        fp32, fp16 = (self.bytes_per_video[precision] / 1024 for precision in ("fp32", "fp16"))
        return [
            f"parameters: {self.parameters / 1e6:.2f} M",
            f"encoding a video: {self.gflop_per_video:.3g} GFLOP, {self.ms_per_video:.3g} ms; a query:"
            f" {self.gflop_per_query:.3g} GFLOP, {self.ms_per_query:.3g} ms ({self.batch} at a time on {self.device})",
            f"an encoded video: {self.tokens_per_video:.4g} tokens{features}, {fp32:.1f} KiB in fp32 or"
            f" {fp16:.1f} KiB in fp16",
        ]


def measure_encoding_cost(trained: TrainedModel, frame_counts: np.ndarray | None = None) -> EncodingCost:
    """Measure a model on this machine's best device, to which it is moved.

    `frame_counts` (V,) are those of the videos to store; without them, a video has 128 frames.
    """
    model, experiment, device = trained.model.to(best_device()), trained.experiment, best_device()
    video_gflop, query_gflop = encoding_gflop(experiment)
    frames = FRAMES if frame_counts is None or not len(frame_counts) else float(np.mean(frame_counts))
    values = (CLIPS + frames) * experiment.model.hidden_size
    stores_features = ScoreWeights.of(experiment.evaluation, trained.metrics, METRICS).encoder > 0
    if stores_features:
        values += (CLIPS + frames + 1) * experiment.data.video_size
    return EncodingCost(
        parameters=count_parameters(model),
        gflop_per_video=video_gflop,
        gflop_per_query=query_gflop,
        ms_per_video=1000 * statistics.median(time_videos(model)) / BATCH,
        ms_per_query=1000 * statistics.median(time_queries(model)) / BATCH,
        batch=BATCH,
        device=_device_name(device),
        tokens_per_video=CLIPS + frames,
        bytes_per_video={precision: values * size for precision, size in BYTES_PER_VALUE.items()},
        stores_features=stores_features,
    )


def count_parameters(model: DreamPRVR) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def time_videos(model: DreamPRVR) -> list[float]:
    """Return the seconds that each of several batches of `BATCH` videos takes on the model's device."""
    size, device = model.clip_input.layer.project.in_features, next(model.parameters()).device
    clips, frames = _random(BATCH, CLIPS, size).to(device), _random(BATCH, FRAMES, size).to(device)
    mask = torch.ones(BATCH, FRAMES, dtype=torch.bool, device=device)
    return _times(lambda: model.encode_videos(clips, frames, mask).frame_tokens)


def time_queries(model: DreamPRVR) -> list[float]:
    """Return the seconds that each of several batches of `BATCH` queries takes on the model's device."""
    size, device = model.query_input.layer.project.in_features, next(model.parameters()).device
    tokens = _random(BATCH, QUERY_TOKENS, size).to(device)
    mask = torch.ones(BATCH, QUERY_TOKENS, dtype=torch.bool, device=device)
    return _times(lambda: model.encode_queries(tokens, mask))


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _times(encode: Callable[[], Tensor]) -> list[float]:
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        if encode().device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{_processor_name()}, {threads} {'thread' if threads == 1 else 'threads'}"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine() or "CPU"
