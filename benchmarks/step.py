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
from functools import partial
from typing import Any

import torch

from benchmarks.measured_process import MeasuredProcess, peak_memory
from benchmarks.synthetic import random_batch
from benchmarks.training_steps import FastSteps, LaunchedSteps, PlainSteps
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import FRAMES, Experiment, load_experiment
from dreamprvr_ray.device import autocast, resolve_precision
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.training.flops import QUERIES_PER_VIDEO, specified_gflop
from dreamprvr_ray.training.objective import StepRandomness

PATHS = ("fast", "plain")


class Steps:
    """Steps of one path on a batch of random features."""

    def __init__(self, path: str, experiment: Experiment, device: torch.device, precision: str) -> None:
        self._before = peak_memory()  # the interpreter and its libraries
        if path == "fast":
            self._steps: FastSteps | PlainSteps = FastSteps(experiment, device, precision, compiled=True)
        else:
            self._steps = (
                LaunchedSteps(experiment, device, precision) if device.type == "cuda" else PlainSteps(experiment)
            )
        size = experiment.training.batch_videos
        shortest = FRAMES if device.type == "cpu" else 40
        self._batch = random_batch(experiment.data, size, QUERIES_PER_VIDEO, shortest=shortest).to(device)
        self._sizes = (size, size * QUERIES_PER_VIDEO, experiment.model.registers, experiment.model.hidden_size)
        self._step = 0

    def __call__(self, count: int) -> tuple[float, float, float]:
        """Run `count` steps; return wall and CPU seconds per step, and peak memory in GiB beyond the interpreter's."""
        synchronise()
        began, used = time.perf_counter(), time.process_time()
        for _ in range(count):
            torch.manual_seed(self._step)
            self._steps.step(self._batch, StepRandomness.draw(0, self._step, *self._sizes))
            self._step += 1
        synchronise()
        return (time.perf_counter() - began) / count, (time.process_time() - used) / count, peak_memory() - self._before


def synchronise() -> None:
    """Wait for the device."""
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
            synchronise()
            began = time.perf_counter()
            self._product()
            synchronise()
            rates.append(2 * self._size**3 / (time.perf_counter() - began) / 1e12)
        return statistics.median(rates[1:])


def main(arguments: list[str]) -> None:
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
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use")
    device = torch.device(options.device)
    experiment = load_experiment(options.config, dict(pair.split("=", 1) for pair in options.set))
    videos = options.videos or (16 if device.type == "cpu" else experiment.training.batch_videos)
    experiment = experiment.with_values({"training.batch_videos": videos})
    gflop, steps = specified_gflop(experiment), options.steps or (1 if device.type == "cpu" else 20)
    with autocast(device, resolve_precision(options.precision, device)) as context:
        dtype = torch.bfloat16 if context._enabled else torch.float32
    peaks = [matrix_peak(options.threads, device, dtype)]
    print(
        f"{dtype} matrix products: {peaks[0]:.3g} TFLOP/s; a step of {videos} videos has"
        f" {videos * gflop / 1000:.3g} TFLOP as specified",
        flush=True,
    )

    results: dict[str, Any] = {
        "device": options.device,
        "precision": str(dtype).removeprefix("torch."),
        "threads": options.threads,
        "videos": videos,
    }
    processes, seconds, used = {}, {}, {}
    for path in PATHS if options.against else PATHS[:1]:
        processes[path], seconds[path] = (
            MeasuredProcess(options.threads, Steps, path, experiment, device, options.precision),
            [],
        )
        used[path] = []
        # On a GPU the first step is launched, the second captured, the third replayed.
        first = [processes[path](1)[0] for _ in range(3 if device.type == "cuda" else 1)]
        print(f"{path}: the first steps took {', '.join(f'{step:.1f}' for step in first)} s", flush=True)
        results[path] = {"first_steps_s": [round(step, 2) for step in first]}
    for number in range(options.rounds):
        for path, process in processes.items():
            taken, cpu, results[path]["peak_gib"] = process(steps)
            seconds[path].append(taken)
            used[path].append(cpu)
        rates = ", ".join(f"{path} {videos / taken[-1]:.2f}" for path, taken in seconds.items())
        print(f"round {number + 1}: videos/s: {rates}", flush=True)
    peaks.append(matrix_peak(options.threads, device, dtype))  # the machine's other load may have changed
    peak = results["matrix_tflops"] = max(peaks)
    for path, taken in seconds.items():
        step = statistics.median(taken)
        rate = videos * gflop / step / 1000
        results[path] |= {
            "step_ms": round(1000 * step, 2),
            "cpu_ms": round(1000 * statistics.median(used[path]), 2),
            "videos_per_second": round(videos / step, 2),
            "gflops": round(1000 * rate, 1),
            "share_of_matrix_peak": round(rate / peak, 4),
            "peak_gib": round(results[path]["peak_gib"], 3),
        }
        print(
            f"{path}: {1000 * step:.1f} ms per step, {videos / step:.2f} videos/s,"
            f" {1000 * rate:.0f} GFLOP/s as specified ({rate / peak:.1%} of the rate of matrix products),"
            f" peak memory {results[path]['peak_gib']} GiB"
        )
    if options.epoch:
        count = -(-options.epoch // videos)
        epoch = count * processes["fast"](count)[0]
        epochs = experiment.training.epochs
        results["epoch"] = {
            "videos": options.epoch,
            "seconds": round(epoch, 2),
            "training_minutes": round(epoch * epochs / 60, 2),
        }
        print(
            f"epoch of {options.epoch} videos: {epoch:.2f} s; {epochs} epochs: {epoch * epochs / 60:.1f} min,"
            " without reading and evaluation"
        )
    if options.against:
        results["memory_ratio"] = round(results["fast"]["peak_gib"] / results["plain"]["peak_gib"], 3)
        results["cpu_ratio"] = round(results["plain"]["cpu_ms"] / results["fast"]["cpu_ms"], 3)
        results["ratio"] = round(
            statistics.median(plain / fast for plain, fast in zip(seconds["plain"], seconds["fast"], strict=True)), 3
        )
        print(
            f"the fast path is {results['ratio']:.2f} times as fast as the plain one"
            f" (median of {options.rounds} rounds; {results['cpu_ratio']:.2f} by CPU time)"
        )
        print(f"it needs {results['memory_ratio']:.2f} times the plain path's memory")
    for process in processes.values():
        process.close()
    if options.json:
        print_json(results)


def matrix_peak(threads: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of matrix products, in TFLOP/s."""
    process = MeasuredProcess(threads, MatrixPeak, device, dtype)
    peak: float = process()
    process.close()
    return peak


if __name__ == "__main__":
    run(main)
