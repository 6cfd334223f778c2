"""python -m benchmarks.step: how fast a training step is, against what the machine's matrix products reach in the same run.

A step is the forward pass, the losses, the backward pass and the optimiser, dropout on, on random features of a preset's sizes that lie on
the device. `--against plain` alternates with the same step launched kernel by kernel and without compiled chains, which is how several
workers, and steps of rare shapes, are run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.synthetic import random_batch
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.cost import QUERIES_PER_VIDEO, specified_gflop
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.loop import autocast
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.objective import StepRandomness
from dreamprvr_ray.optimizer import build_optimizer
from dreamprvr_ray.recorded import GradientPass

PATHS = ("fast", "plain")


class Training:
    """Steps of one path on a batch of random features."""

    def __init__(self, path: str, experiment: Experiment, device: torch.device, precision: str, videos: int) -> None:
        torch.manual_seed(0)
        self._model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size).to(device).train()
        self._optimizer = build_optimizer(self._model, experiment.optimizer, total_steps=10**6)
        size = experiment.training.batch_videos
        total = 0 if path == "plain" else videos
        passes = GradientPass(self._model, experiment, total, partial(autocast, device, precision))
        self._pass = passes.launch if path == "plain" else passes
        self._batch = random_batch(experiment.data, size, QUERIES_PER_VIDEO).to(device)
        self._sizes = (size, size * QUERIES_PER_VIDEO, experiment.model.registers, experiment.model.hidden_size)
        self._step = 0

    def steps(self, count: int) -> float:
        """Takes so many steps; returns the seconds that one took."""
        synchronise()
        began = time.perf_counter()
        for _ in range(count):
            torch.manual_seed(self._step)
            self._pass(self._batch, StepRandomness.draw(0, self._step, *self._sizes))
            self._optimizer.step()
            self._step += 1
        synchronise()
        return (time.perf_counter() - began) / count


def synchronise() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of one large product of random matrices."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device).to(dtype).unbind()
    products: Callable[[], Any] = partial(torch.mm, left, right)
    for _ in range(3):
        products()
    rates = []
    for _ in range(5):
        synchronise()
        began = time.perf_counter()
        for _ in range(3):
            products()
        synchronise()
        rates.append(3 * 2 * size**3 / (time.perf_counter() - began) / 1e12)
    return statistics.median(rates)


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks.step", "The speed of a training step.")
    parser.add_argument("--config", default="tvr")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--against", choices=("plain",))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="a round and path")
    parser.add_argument("--epoch", type=int, metavar="VIDEOS", help="also time an epoch of so many videos and reckon a training's epochs")
    parser.add_overrides()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use")
    if options.device == "cpu" and options.against:
        raise UserError("--against plain: on the CPU both paths are the same")
    device = torch.device(options.device)
    experiment = load_experiment(options.config, dict(pair.split("=", 1) for pair in options.set))
    videos, gflop = experiment.training.batch_videos, specified_gflop(experiment)
    with autocast(device, options.precision) as context:
        dtype = torch.bfloat16 if context._enabled else torch.float32
    peak = matrix_peak(device, dtype)
    print(f"{dtype} matrix products: {peak:.0f} TFLOP/s; a step of {videos} videos is specified as {videos * gflop / 1000:.2f} TFLOP", flush=True)

    results: dict[str, Any] = {"device": options.device, "precision": str(dtype).removeprefix("torch."), "matrix_tflops": round(peak, 1)}
    trainings, seconds = {}, {}
    for path in PATHS if options.against else PATHS[:1]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        training = Training(path, experiment, device, options.precision, videos=10**9)
        first = [training.steps(1) for _ in range(3)]  # launched, recorded, replayed
        print(f"{path}: the first steps took {', '.join(f'{each:.1f}' for each in first)} s", flush=True)
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
        trainings[path], seconds[path] = training, []
        results[path] = {"peak_gib": memory and round(memory, 2), "first_steps_s": [round(each, 2) for each in first]}
    for number in range(options.rounds):
        for path, training in trainings.items():
            seconds[path].append(training.steps(options.steps))
        each = ", ".join(f"{path} {videos / taken[-1]:.1f}" for path, taken in seconds.items())
        print(f"round {number + 1}: videos/s: {each}", flush=True)
    for path, taken in seconds.items():
        step = statistics.median(taken)
        rate = videos * gflop / step / 1000
        share = rate / peak
        results[path] |= {
            "step_ms": round(1000 * step, 2),
            "videos_per_second": round(videos / step, 1),
            "gflops": round(1000 * rate, 1),
            "share_of_matrix_peak": round(share, 4),
        }
        print(f"{path}: {1000 * step:.1f} ms a step, {videos / step:.0f} videos/s, {rate:.2f} TFLOP/s as specified, {share:.1%} of the matrix peak")
    if options.against:
        results["ratio"] = round(statistics.median(plain / fast for plain, fast in zip(seconds["plain"], seconds["fast"], strict=True)), 3)
        print(f"fast is {results['ratio']:.2f} times as fast as plain (median of {options.rounds} rounds)")
    if options.epoch:
        count = -(-options.epoch // videos)
        epoch = count * trainings["fast"].steps(count)
        epochs = experiment.training.epochs
        results["epoch"] = {"videos": options.epoch, "seconds": round(epoch, 2), "training_minutes": round(epoch * epochs / 60, 2)}
        print(
            f"an epoch of {options.epoch} videos: {epoch:.2f} s; {epochs} such epochs: {epoch * epochs / 60:.1f} min, without reading and evaluation"
        )
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)
