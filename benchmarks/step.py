"""Time a training step, and compare its rate with the machine's rate for matrix products.

    python -m benchmarks.step [--device cuda] [--against plain]

A step is the forward pass, the losses, the backward pass and the optimiser, with dropout, on random features of a
preset's sizes that are already on the device: on the CPU 16 videos of 128 frames, on a GPU the preset's batch of videos
of 40 to 128 frames. `--against plain` alternates with the plain path. On the CPU that is the specification branch by
branch in fp32; on a GPU it is the same step launched kernel by kernel without compiled operations, as with several
workers or rare batch shapes. Each path has its own process.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.measured_process import MeasuredProcess, peak_memory
from benchmarks.synthetic import random_batch
from benchmarks.training_steps import FastSteps, LaunchedSteps, ReferenceSteps
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.config_sections import FRAMES
from dreamprvr_ray.device import resolve_precision
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.training.flops import QUERIES_PER_VIDEO, specified_gflop
from dreamprvr_ray.training.objective import StepRandomness

PATHS = ("fast", "plain")


@dataclass(frozen=True)
class Measurement:
    """What `count` steps took."""

    seconds: float  # per step
    cpu_seconds: float  # per step
    peak_gib: float  # of the process so far, without the interpreter and its libraries


class Steps:
    """Steps of one path on a batch of random features."""

    def __init__(self, path: str, experiment: Experiment, device: torch.device, precision: str) -> None:
        self._interpreter_gib = peak_memory()
        self._steps: FastSteps | ReferenceSteps
        if path == "fast":
            self._steps = FastSteps(experiment, device, precision, compiled=True)
        elif device.type == "cuda":
            self._steps = LaunchedSteps(experiment, device, precision)
        else:
            self._steps = ReferenceSteps(experiment)
        size = experiment.training.batch_videos
        shortest = FRAMES if device.type == "cpu" else 40
        self._batch = random_batch(experiment.data, size, QUERIES_PER_VIDEO, shortest=shortest).to(device)
        self._sizes = (size, size * QUERIES_PER_VIDEO, experiment.model.registers, experiment.model.hidden_size)
        self._step = 0

    def __call__(self, count: int) -> Measurement:
        """Run `count` steps."""
        synchronize()
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(count):
            torch.manual_seed(self._step)
            self._steps.step(self._batch, StepRandomness.draw(0, self._step, *self._sizes))
            self._step += 1
        synchronize()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return Measurement(seconds / count, cpu_seconds / count, peak_memory() - self._interpreter_gib)


def synchronize() -> None:
    """Wait until the GPU, if there is one, is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class MatrixPeak:
    """The rate of one large product of random matrices, in TFLOP/s."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._size = 8192 if device.type == "cuda" else 4096
        left, right = torch.randn(2, self._size, self._size, device=device).to(dtype).unbind()
        self._product: Callable[[], Any] = partial(torch.mm, left, right)

    def __call__(self) -> float:
        rates = []
        for _ in range(6):
            synchronize()
            start = time.perf_counter()
            self._product()
            synchronize()
            rates.append(2 * self._size**3 / (time.perf_counter() - start) / 1e12)
        return statistics.median(rates[1:])  # the first product warms up


def matrix_peak(threads: int, device: torch.device, dtype: torch.dtype) -> float:
    """Measure `MatrixPeak` in a new process."""
    process = MeasuredProcess(threads, MatrixPeak, device, dtype)
    tflops: float = process()
    process.close()
    return tflops


@dataclass
class PathResult:
    """A path's process and what its rounds took."""

    steps: MeasuredProcess
    first_steps: list[float]  # seconds
    rounds: list[Measurement] = field(default_factory=list)

    def summary(self, videos: int, gflop: float, peak_tflops: float) -> dict[str, Any]:
        """Return the results of a batch of `videos`, each specified as `gflop`, by their names in the JSON."""
        step = statistics.median(measurement.seconds for measurement in self.rounds)
        tflops = videos * gflop / step / 1000
        return {
            "first_steps_s": [round(seconds, 2) for seconds in self.first_steps],
            "peak_gib": round(self.rounds[-1].peak_gib, 3),
            "step_ms": round(1000 * step, 2),
            "cpu_ms": round(1000 * statistics.median(measurement.cpu_seconds for measurement in self.rounds), 2),
            "videos_per_second": round(videos / step, 2),
            "gflops": round(1000 * tflops, 1),
            "share_of_matrix_peak": round(tflops / peak_tflops, 4),
        }


def build_parser() -> Parser:
    parser = Parser("step", "Time a training step.", package="benchmarks")
    parser.add_argument("--config", default="tvr", help="a preset or a YAML file (default: tvr)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="precision of the fast path"
    )
    parser.add_argument("--against", choices=("plain",), help="also time the plain path, in turns")
    parser.add_argument(
        "--videos", type=int, help="videos per step (default: 16 on the CPU, the preset's batch on a GPU)"
    )
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all cores)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of measurement (default: 5)")
    parser.add_argument("--steps", type=int, help="steps per round and path (default: 1 on the CPU, 20 on a GPU)")
    parser.add_argument(
        "--epoch",
        type=int,
        metavar="VIDEOS",
        help="also time an epoch of this many videos, and estimate the training time",
    )
    parser.add_overrides()
    return parser


def main(arguments: list[str]) -> None:
    options = build_parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use")
    device = torch.device(options.device)
    experiment = load_experiment(options.config, dict(pair.split("=", 1) for pair in options.set))
    videos = options.videos or (16 if device.type == "cpu" else experiment.training.batch_videos)
    experiment = experiment.with_values({"training.batch_videos": videos})
    gflop, steps = specified_gflop(experiment), options.steps or (1 if device.type == "cpu" else 20)
    dtype = torch.bfloat16 if resolve_precision(options.precision, device) == "bf16" else torch.float32
    peaks = [matrix_peak(options.threads, device, dtype)]
    print(
        f"{dtype} matrix products: {peaks[0]:.3g} TFLOP/s; a step of {videos} videos is specified as"
        f" {videos * gflop / 1000:.3g} TFLOP",
        flush=True,
    )

    paths: dict[str, PathResult] = {}
    for path in PATHS if options.against else PATHS[:1]:
        process = MeasuredProcess(options.threads, Steps, path, experiment, device, options.precision)
        # On a GPU, the first step of a batch shape is launched, the second captured, the third replayed.
        first = [process(1).seconds for _ in range(3 if device.type == "cuda" else 1)]
        paths[path] = PathResult(process, first)
        print(f"{path}: the first steps took {', '.join(f'{seconds:.1f}' for seconds in first)} s", flush=True)
    for number in range(options.rounds):
        for result in paths.values():
            result.rounds.append(result.steps(steps))
        rates = ", ".join(f"{path} {videos / result.rounds[-1].seconds:.2f}" for path, result in paths.items())
        print(f"round {number + 1}: videos/s: {rates}", flush=True)
    peaks.append(matrix_peak(options.threads, device, dtype))  # again, because the machine's load may have changed

    results: dict[str, Any] = {
        "device": options.device,
        "precision": str(dtype).removeprefix("torch."),
        "threads": options.threads,
        "videos": videos,
    }
    results |= {path: result.summary(videos, gflop, max(peaks)) for path, result in paths.items()}
    results["matrix_tflops"] = max(peaks)
    for path in paths:
        summary = results[path]
        print(
            f"{path}: {summary['step_ms']:.1f} ms per step, {summary['videos_per_second']:.2f} videos/s,"
            f" {summary['gflops']:.0f} GFLOP/s as specified, {summary['share_of_matrix_peak']:.1%} of the matrix peak,"
            f" at most {summary['peak_gib']} GiB"
        )
    if options.epoch:
        results["epoch"] = time_epoch(paths["fast"].steps, options.epoch, videos, experiment.training.epochs)
    if options.against:
        results |= compare(paths, results)
    for result in paths.values():
        result.steps.close()
    if options.json:
        print_json(results)


def time_epoch(steps: MeasuredProcess, epoch_videos: int, videos: int, epochs: int) -> dict[str, Any]:
    """Time the steps of one epoch, print and return the result."""
    count = -(-epoch_videos // videos)
    seconds = count * steps(count).seconds
    print(
        f"an epoch of {epoch_videos} videos: {seconds:.2f} s; {epochs} epochs: {seconds * epochs / 60:.1f} min,"
        " without reading and evaluation"
    )
    return {
        "videos": epoch_videos,
        "seconds": round(seconds, 2),
        "training_minutes": round(seconds * epochs / 60, 2),
    }


def compare(paths: dict[str, PathResult], summaries: dict[str, Any]) -> dict[str, float]:
    """Print and return how the fast path compares with the plain one."""
    fast, plain = paths["fast"].rounds, paths["plain"].rounds
    ratios = {
        "memory_ratio": round(summaries["fast"]["peak_gib"] / summaries["plain"]["peak_gib"], 3),
        "cpu_ratio": round(summaries["plain"]["cpu_ms"] / summaries["fast"]["cpu_ms"], 3),
        "ratio": round(statistics.median(p.seconds / f.seconds for f, p in zip(fast, plain, strict=True)), 3),
    }
    print(
        f"fast is {ratios['ratio']:.2f} times as fast as plain (median of {len(fast)} rounds; by CPU time"
        f" {ratios['cpu_ratio']:.2f})"
    )
    print(f"it takes {ratios['memory_ratio']:.2f} of plain's memory")
    return ratios


if __name__ == "__main__":
    run(main)
