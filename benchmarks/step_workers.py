"""Measure training steps of one to four workers that have the same share of a core each, without Ray.

There are always `PROCESSES` processes; those that are not workers train other models, so that
cores, caches and memory are equally busy however many workers there are.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.core_shares import core_shares, join
from benchmarks.measured_process import MeasuredProcess
from benchmarks.synthetic import random_batch
from dreamprvr_ray.config import Experiment
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.gradient_step import GradientPass
from dreamprvr_ray.training.objective import StepRandomness
from dreamprvr_ray.training.optimizer import build_optimizer

PROCESSES = 4
SMALL_MESSAGES = 50


@dataclass(frozen=True)
class StepTimes:
    """Steps of `workers` workers with a global batch of `videos`. All times are seconds a step, of the first worker."""

    workers: int
    videos: int
    seconds: float  # median
    cpu_seconds: float
    loss_bytes: int  # that the first worker sent
    gradient_bytes: int


@dataclass(frozen=True)
class MessageTimes:
    """Seconds of messages between `workers` workers."""

    workers: int
    small: float  # an all-reduce of 8 bytes
    large: float  # an all-reduce of the size of the gradients
    sum_gradients: float  # the same by `Workers.sum_gradients`, which copies the gradients into one tensor and back


class StepWorker:
    """One process. It has `share_group`'s share of a core, and is a worker, or busy with training alone."""

    def __init__(self, experiment: Experiment, queries_per_video: int, share_group: Path | None) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.manual_seed(0)
        self._experiment, self._queries_per_video = experiment, queries_per_video
        data = experiment.data
        self._model = DreamPRVR(experiment.model, data.video_size, data.text_size).train()
        self._optimizer = build_optimizer(self._model, experiment.optimizer, total_steps=10**6)
        self._number = 0
        if share_group is not None:
            join(share_group)

    def __call__(self, task: str, *arguments: Any) -> Any:
        return getattr(self, task)(*arguments)

    def steps(self, rank: int, workers: int, videos: int, count: int, rendezvous: str) -> StepTimes:
        """Run `count` steps and one that warms up. Every worker must call this."""
        with _group(rank, workers, rendezvous):
            group = Workers(rank, workers)
            step = self.step_of(group, videos)
            step()
            seconds, cpu, sent = [], time.process_time(), replace(group.traffic)
            for _ in range(count):
                _barrier(workers)
                began = time.perf_counter()
                step()
                _barrier(workers)
                seconds.append(time.perf_counter() - began)
            sent, cpu = group.traffic.since(sent), time.process_time() - cpu
        return StepTimes(
            workers, videos, statistics.median(seconds), cpu / count, sent.loss // count, sent.gradients // count
        )

    def messages(self, rank: int, workers: int, count: int, rendezvous: str) -> MessageTimes:
        """Time messages. Every worker must call this."""
        parameters = list(self._model.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        small, large = torch.zeros(2), torch.zeros(sum(parameter.numel() for parameter in parameters))
        group = Workers(rank, workers)
        with _group(rank, workers, rendezvous):
            return MessageTimes(
                workers,
                _median_seconds(lambda: _repeat(SMALL_MESSAGES, lambda: dist.all_reduce(small)), count, workers)
                / SMALL_MESSAGES,
                _median_seconds(lambda: dist.all_reduce(large), count, workers),
                _median_seconds(lambda: group.sum_gradients(parameters), count, workers),
            )

    def busy(self, videos: int, until: Path) -> None:
        """Train alone until the file `until` exists."""
        step = self.step_of(Workers(), videos)
        while not until.exists():
            step()

    def step_of(self, workers: Workers, videos: int) -> Callable[[], None]:
        """Return a function that runs a step of a global batch of `videos`."""
        model = self._experiment.model
        division = workers.division(np.full(videos, self._queries_per_video))
        batch = random_batch(self._experiment.data, division.videos[workers.rank], self._queries_per_video)
        gradients = GradientPass(self._model, self._experiment.loss, "fp32", workers)

        def step() -> None:
            self._number += 1
            randomness = StepRandomness.for_model(0, self._number, videos, sum(division.queries), model)
            gradients(batch, randomness, division)
            workers.sum_gradients(self._model.parameters())
            self._optimizer.step()

        return step


class StepProcesses:
    """The processes, of which the first ones are workers in each call."""

    def __init__(self, processes: list[MeasuredProcess], folder: Path, busy_videos: int) -> None:
        self._processes, self._folder, self._busy_videos = processes, folder, busy_videos
        self._calls = 0

    def steps(self, workers: int, videos: int, count: int) -> StepTimes:
        """Run `count` steps of a global batch of `videos`."""
        found: StepTimes = self._call("steps", workers, videos, count)
        return found

    def messages(self, workers: int, count: int) -> MessageTimes:
        """Time each kind of message `count` times."""
        found: MessageTimes = self._call("messages", workers, count)
        return found

    def _call(self, task: str, workers: int, *arguments: int) -> Any:
        self._calls += 1
        done, rendezvous = (str(self._folder / f"{name}-{self._calls}") for name in ("done", "rendezvous"))
        for process in self._processes[workers:]:
            process.start("busy", self._busy_videos, Path(done))
        for rank, process in enumerate(self._processes[:workers]):
            process.start(task, rank, workers, *arguments, rendezvous)
        results = [process.result() for process in self._processes[:workers]]
        Path(done).touch()
        for process in self._processes[workers:]:
            process.result()
        return results[0]


@contextmanager
def step_processes(experiment: Experiment, queries_per_video: int, share: float) -> Iterator[StepProcesses]:
    """Start `PROCESSES` processes of one thread with `share` of a core each."""
    with (
        tempfile.TemporaryDirectory(prefix="dreamprvr-steps-") as folder,
        core_shares(PROCESSES, share) as groups,
    ):
        processes = [MeasuredProcess(1, StepWorker, experiment, queries_per_video, group) for group in groups]
        try:
            yield StepProcesses(processes, Path(folder), max(1, experiment.training.batch_videos // PROCESSES))
        finally:
            for process in processes:
                process.close()


@contextmanager
def _group(rank: int, workers: int, rendezvous: str) -> Iterator[None]:
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    try:
        yield
    finally:
        if workers > 1:
            dist.destroy_process_group()


def _barrier(workers: int) -> None:
    if workers > 1:
        dist.barrier()


def _repeat(count: int, function: Callable[[], Any]) -> None:
    for _ in range(count):
        function()


def _median_seconds(function: Callable[[], Any], count: int, workers: int) -> float:
    function()
    seconds = []
    for _ in range(count):
        _barrier(workers)
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
