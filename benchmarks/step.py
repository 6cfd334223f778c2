"""python -m benchmarks.step: how fast a training step is, against what the machine's matrix products reach in the same run.

A step is the forward pass, the losses, the backward pass and the optimiser, dropout on, on random features of a preset's sizes that lie on
the device: on the CPU 16 videos of 128 frames, on a GPU the preset's batch of videos of 40 to 128 frames. `--against plain` takes turns with
the plain path: on the CPU the specification branch by branch in fp32, on a GPU the same step launched kernel by kernel and without compiled
chains, which is how several workers, and steps of rare shapes, are run. Each path has a process of its own.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.paths import FastSteps, LaunchedSteps, PlainSteps
from benchmarks.sides import Side, peak_memory
from benchmarks.synthetic import random_batch
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
        """Takes so many steps; gives the seconds that one took, those of the CPU, and the most memory so far in GiB, less the interpreter's."""
        synchronise()
        began, used = time.perf_counter(), time.process_time()
        for _ in range(count):
            torch.manual_seed(self._step)
            self._steps.step(self._batch, StepRandomness.draw(0, self._step, *self._sizes))
            self._step += 1
        synchronise()
        return (time.perf_counter() - began) / count, (time.process_time() - used) / count, peak_memory() - self._before


def synchronise() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class MatrixPeak:
    """TFLOP/s of one large product of random matrices."""

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
    parser = Parser("step", "The speed of a training step.", package="benchmarks")
    parser.add_argument("--config", default="tvr")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the fast path")
    parser.add_argument("--against", choices=("plain",))
    parser.add_argument("--videos", type=int, help="a step (default: 16 on the CPU, the preset's batch on a GPU)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="a round and path (default: 1 on the CPU, 20 on a GPU)")
    parser.add_argument(
        "--epoch",
        type=int,
        metavar="VIDEOS",
        help="also time an epoch of so many videos and reckon a training's epochs",
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
    peaks = [measured(options.threads, device, dtype)]
    print(
        f"{dtype} matrix products: {peaks[0]:.3g} TFLOP/s; a step of {videos} videos is specified as {videos * gflop / 1000:.3g} TFLOP",
        flush=True,
    )

    results: dict[str, Any] = {
        "device": options.device,
        "precision": str(dtype).removeprefix("torch."),
        "threads": options.threads,
        "videos": videos,
    }
    sides, seconds, used = {}, {}, {}
    for path in PATHS if options.against else PATHS[:1]:
        sides[path], seconds[path] = Side(options.threads, Steps, path, experiment, device, options.precision), []
        used[path] = []
        first = [
            sides[path](1)[0] for _ in range(3 if device.type == "cuda" else 1)
        ]  # on a GPU: launched, recorded, replayed
        print(f"{path}: the first steps took {', '.join(f'{each:.1f}' for each in first)} s", flush=True)
        results[path] = {"first_steps_s": [round(each, 2) for each in first]}
    for number in range(options.rounds):
        for path, side in sides.items():
            taken, cpu, results[path]["peak_gib"] = side(steps)
            seconds[path].append(taken)
            used[path].append(cpu)
        each = ", ".join(f"{path} {videos / taken[-1]:.2f}" for path, taken in seconds.items())
        print(f"round {number + 1}: videos/s: {each}", flush=True)
    peaks.append(measured(options.threads, device, dtype))  # what else the machine does may have changed meanwhile
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
            f"{path}: {1000 * step:.1f} ms a step, {videos / step:.2f} videos/s, {1000 * rate:.0f} GFLOP/s as specified, {rate / peak:.1%} of the"
            f" matrix peak, at most {results[path]['peak_gib']} GiB"
        )
    if options.epoch:
        count = -(-options.epoch // videos)
        epoch = count * sides["fast"](count)[0]
        epochs = experiment.training.epochs
        results["epoch"] = {
            "videos": options.epoch,
            "seconds": round(epoch, 2),
            "training_minutes": round(epoch * epochs / 60, 2),
        }
        print(
            f"an epoch of {options.epoch} videos: {epoch:.2f} s; {epochs} such epochs: {epoch * epochs / 60:.1f} min, without reading and evaluation"
        )
    if options.against:
        results["memory_ratio"] = round(results["fast"]["peak_gib"] / results["plain"]["peak_gib"], 3)
        results["cpu_ratio"] = round(results["plain"]["cpu_ms"] / results["fast"]["cpu_ms"], 3)
        results["ratio"] = round(
            statistics.median(plain / fast for plain, fast in zip(seconds["plain"], seconds["fast"], strict=True)), 3
        )
        print(
            f"fast is {results['ratio']:.2f} times as fast as plain (median of {options.rounds} rounds; by CPU time {results['cpu_ratio']:.2f})"
        )
        print(f"it takes {results['memory_ratio']:.2f} of plain's memory")
    for side in sides.values():
        side.close()
    if options.json:
        print_json(results)


def measured(threads: int, device: torch.device, dtype: torch.dtype) -> float:
    """The matrix peak, in TFLOP/s."""
    side = Side(threads, MatrixPeak, device, dtype)
    peak: float = side()
    side.close()
    return peak


if __name__ == "__main__":
    run(main)
