"""A model of a training step with several workers: what each computes, what they send, and how long they wait.

    step(N) = compute + loss + messages + waiting

- compute: `fixed` seconds whatever the batch, and `per_video` seconds for each of the worker's own videos.
- loss: `per_loss_pair` seconds for each pair of queries of the global batch, because every worker computes the whole
  loss (docs/architecture.md), whose largest tensors are matrices of queries by queries.
- scores: `per_score` seconds for each pair of a query of the global batch and an own video.
- messages: as `distributed.py` sends them, in a ring: `latency` seconds for each round, and the bytes that a worker
  sends at `bandwidth` bytes a second.
- waiting: workers take differently long and all wait for the slowest. The largest of N normally distributed times
  exceeds their mean by `expected_maximum(N)` standard deviations; `spread` is the standard deviation as a share of
  what a worker computes.

All workers have the same device. With a host that launches each operation, a step takes at least `launch` seconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import integrate, special

FLOAT = 4  # bytes


@dataclass(frozen=True)
class StepSize:
    """What a step processes, and the model's sizes that its messages depend on."""

    videos: int  # of the global batch
    queries_per_video: float
    hidden_size: int
    parameters: int  # trainable

    @property
    def queries(self) -> float:
        """The queries of the global batch."""
        return self.videos * self.queries_per_video


@dataclass(frozen=True)
class Messages:
    """What one worker sends in a step."""

    loss_bytes: float
    gradient_bytes: float
    rounds: int  # of the rings, one after another


def messages(size: StepSize, workers: int) -> Messages:
    """Return the messages of a step of `training_losses` and `Workers.sum_gradients`."""
    if workers == 1:
        return Messages(0, 0, 0)
    own_videos = math.ceil(size.videos / workers)  # gathers are padded to the largest part
    own_queries = own_videos * size.queries_per_video
    gathers = 2 * own_queries * size.hidden_size + own_videos * 4 * size.queries
    sums = 2 + size.queries * size.hidden_size  # two losses; the gradient of the queries
    summed = 2 * (workers - 1) / workers
    return Messages(
        FLOAT * (gathers * (workers - 1) + sums * summed),
        FLOAT * size.parameters * summed,
        3 * (workers - 1) + 3 * 2 * (workers - 1),
    )


@dataclass(frozen=True)
class StepTime:
    """The parts of a step in seconds. A device that waits for its host's launches waits for `launching`."""

    compute: float
    loss: float
    messages: float
    waiting: float
    launching: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.loss + self.messages + self.waiting + self.launching


@dataclass(frozen=True)
class StepModel:
    """The constants of `step`, in seconds and bytes a second, as the module describes them."""

    fixed: float
    per_video: float
    per_loss_pair: float = 0.0
    per_score: float = 0.0
    copying: float = 0.0  # the gradients into one tensor and back, with several workers
    latency: float = 0.0
    bandwidth: float = math.inf
    spread: float = 0.0
    launch: float = 0.0  # at least, with several workers

    def step(self, size: StepSize, workers: int) -> StepTime:
        """Predict a step of `workers` workers."""
        own = math.ceil(size.videos / workers)
        compute = self.fixed + self.per_video * own + self.per_score * own * size.queries
        loss = self.per_loss_pair * size.queries**2
        sent, copying = messages(size, workers), self.copying if workers > 1 else 0.0
        sending = (sent.loss_bytes + sent.gradient_bytes) / self.bandwidth + sent.rounds * self.latency + copying
        waiting = expected_maximum(workers) * self.spread * (compute + loss)
        launching = max(0.0, self.launch - compute - loss) if workers > 1 else 0.0
        return StepTime(compute, loss, sending, waiting, launching)


def expected_maximum(count: int) -> float:
    """Return the expected maximum of `count` standard normal numbers."""
    if count == 1:
        return 0.0

    def density(value: float) -> float:
        below = special.ndtr(value)
        return float(value * count * below ** (count - 1) * math.exp(-value * value / 2) / math.sqrt(2 * math.pi))

    return float(integrate.quad(density, -8, 8, limit=200)[0])


@dataclass(frozen=True)
class MeasuredStep:
    """The median of the measured steps of some size."""

    workers: int
    videos: int
    seconds: float


@dataclass(frozen=True)
class MeasuredMessages:
    """Medians of messages between two workers: an all-reduce of 8 bytes, one of the gradients' size, and
    `Workers.sum_gradients`, in seconds."""

    small: float
    large: float
    sum_gradients: float


def fit(steps: Sequence[MeasuredStep], sent: MeasuredMessages, size: StepSize) -> StepModel:
    """Fit the model to steps of one worker with batches of several sizes, steps of two, and messages between two.

    `size` is that of the step of two workers. The loss is not told apart: it is a part of what one worker computes.
    """
    alone = [step for step in steps if step.workers == 1]
    # Relative errors count alike, so that the small parts of many workers are predicted as well as the large ones.
    rows = np.array([[1 / step.seconds, step.videos / step.seconds] for step in alone])
    (fixed, per_video), *_ = np.linalg.lstsq(rows, np.ones(len(alone)), rcond=None)
    latency = sent.small / 2  # an all-reduce of two workers has two rounds
    gradients = messages(size, 2).gradient_bytes
    bandwidth = gradients / max(sent.large - sent.small, 1e-9)
    copying = max(0.0, sent.sum_gradients - sent.large)
    without_waiting = StepModel(float(fixed), float(per_video), 0, 0, copying, latency, bandwidth)
    together = statistics.median(step.seconds for step in steps if step.workers == 2)
    predicted = without_waiting.step(size, 2)
    spread = max(0.0, together - predicted.seconds) / (predicted.compute * expected_maximum(2))
    return StepModel(float(fixed), float(per_video), 0, 0, copying, latency, bandwidth, spread)
