"""Predict steps of three and four workers from those of one and two, and measure whether they come true."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.step_model import MeasuredMessages, MeasuredStep, StepModel, StepSize, fit, messages
from benchmarks.step_workers import MessageTimes, StepProcesses, StepTimes, step_processes
from dreamprvr_ray.config import Experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.storage.files import write_json

QUERIES = 3  # per video
WITHIN = 0.15  # of the measurement
PREDICTED = (3, 4)  # workers


@dataclass(frozen=True)
class Prediction:
    """The predicted and the measured seconds of a step of `workers` workers."""

    workers: int
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """How much larger the prediction is, as a share of the measurement."""
        return self.predicted / self.measured - 1

    def line(self) -> str:
        """Return the comparison for people."""
        return (
            f"{self.workers} workers: predicted {self.predicted:.2f} s a step, measured {self.measured:.2f} s"
            f" ({self.error:+.1%})"
        )


@dataclass(frozen=True)
class Measurements:
    """What was measured, as it is written to a file: rounds of steps, rounds of messages, and the circumstances."""

    size: StepSize
    share: float  # of a core, for each worker
    steps: list[StepTimes]
    messages: list[MessageTimes]
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON holds them."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Measurements:
        """Read a file of `--measure`. Raises `UserError` if it is none."""
        try:
            values = json.loads(path.read_text())
            return cls(
                StepSize(**values["size"]),
                values["share"],
                [StepTimes(**row) for row in values["steps"]],
                [MessageTimes(**row) for row in values["messages"]],
                values["machine"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not written by --measure: {type(error).__name__}: {error}") from None

    def fit(self) -> StepModel:
        """Fit the model to what one and two workers took."""
        medians = MeasuredMessages(
            *(
                statistics.median(getattr(row, name) for row in self.messages)
                for name in ("small", "large", "sum_gradients")
            )
        )
        return fit([step for step in self._medians() if step.workers < min(PREDICTED)], medians, self.size)

    def predictions(self) -> list[Prediction]:
        """Compare the predictions with what three and four workers took, if they have been measured."""
        model = self.fit()
        return [
            Prediction(step.workers, model.step(self.size, step.workers).seconds, step.seconds)
            for step in self._medians()
            if step.workers in PREDICTED
        ]

    def _medians(self) -> list[MeasuredStep]:
        seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
        for step in self.steps:
            seconds[step.workers, step.videos].append(step.seconds)
        return [MeasuredStep(*key, statistics.median(values)) for key, values in sorted(seconds.items())]


def measure(
    experiment: Experiment, share: float, rounds: int, steps: int, path: Path, log: Callable[[str], None]
) -> Measurements:
    """Measure one and two workers, log the predictions, and only then measure three and four. Writes `path`.

    Raises `UserError` if the workers' cores cannot be limited.
    """
    size = step_size(experiment)
    found = Measurements(size, share, [], [], _machine())
    with step_processes(experiment, QUERIES, share) as processes:
        fitted = [(1, size.videos), (1, size.videos // 2), (1, size.videos // 4), (2, size.videos)]
        for number in range(rounds):
            _measure_round(found, processes, fitted, steps, f"round {number + 1} of {rounds}", log)
            found.messages.append(processes.messages(2, 5))
        write_json(path, found.to_dict())
        model = found.fit()
        log(describe(model))
        for workers in PREDICTED:
            log(f"prediction for {workers} workers: {model.step(size, workers).seconds:.2f} s a step")
        predicted = [(workers, size.videos) for workers in PREDICTED]
        for number in range(rounds):
            _measure_round(found, processes, predicted, steps, f"round {number + 1} of {rounds}", log)
    found.machine["load_after"] = os.getloadavg()[0]
    write_json(path, found.to_dict())
    return found


def step_size(experiment: Experiment) -> StepSize:
    """Return the size of an experiment's step."""
    data = experiment.data
    model = DreamPRVR(experiment.model, data.video_size, data.text_size)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return StepSize(experiment.training.batch_videos, QUERIES, experiment.model.hidden_size, parameters)


def describe(model: StepModel) -> str:
    """Return the fitted constants for people."""
    return (
        f"fitted: {model.fixed:.2f} s and {model.per_video:.3f} s a video; messages {model.latency * 1e3:.2f} ms a"
        f" round, {model.bandwidth / 1e6:.0f} MB/s, {model.copying * 1e3:.0f} ms of copying gradients; times spread"
        f" by {model.spread:.1%}"
    )


def _measure_round(
    found: Measurements,
    processes: StepProcesses,
    cases: list[tuple[int, int]],
    steps: int,
    name: str,
    log: Callable[[str], None],
) -> None:
    for workers, videos in cases:
        times = processes.steps(workers, videos, steps)
        found.steps.append(times)
        expected = messages(StepSize(videos, QUERIES, found.size.hidden_size, found.size.parameters), workers)
        sent = times.loss_bytes + times.gradient_bytes
        assert abs(sent - expected.loss_bytes - expected.gradient_bytes) <= 0.05 * sent, (sent, expected)
        log(
            f"{name}: {workers} workers, {videos} videos: {times.seconds:.2f} s a step ({times.cpu_seconds:.2f} s of"
            f" CPU time), {sent / 1e6:.1f} MB sent"
        )


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load_before": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }
