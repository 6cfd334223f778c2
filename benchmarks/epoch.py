"""Time an epoch on real shards on the CPU: the fast path, the plain path, and the fast path's steps alone.

    python -m benchmarks.epoch --shards SHARDS

The setting is the `tvr` preset at hidden size 128 with `data.trim_frames: batch`. The fast path reads as the training
loop does, in a thread that runs in parallel with the steps. The plain path follows the specification branch by branch
in fp32 on 128 padded frames, and reads between its steps. Both take turns on the same batches of the same epoch. `pure`
is the fast path's time for these batches when they are already in memory.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measured_process import MeasuredProcess, peak_memory
from benchmarks.training_steps import FastSteps, ReferenceSteps
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.batches import Batch, collate, plan_epoch, prefetch
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.training.loop import with_feature_sizes
from dreamprvr_ray.training.objective import StepRandomness


class Epoch:
    """The training steps of one path on batches of the first epoch."""

    def __init__(self, path: str, experiment: Experiment, shards: Path) -> None:
        self._split = ShardSet.open(shards).split("train")
        self._plan = plan_epoch(len(self._split), experiment.training.batch_videos, 0, 0)
        self._steps = (
            FastSteps(experiment, torch.device("cpu"), experiment.training.precision)
            if path == "fast"
            else ReferenceSteps(experiment)
        )
        self._trimmed = path == "fast" and experiment.data.trim_frames == "batch"
        self._model = experiment.model

    def __call__(self, reading: str, first: int, count: int) -> tuple[float, float, float, float]:
        """Train on batches first .. first + count - 1; return wall, CPU and waiting seconds and peak memory in GiB.

        Batches are read `parallel` to the steps, `between` them, or `before` them, which is not timed.
        """
        collated = (collate(self._split, videos, self._trimmed) for videos in self._plan[first : first + count])
        batches: Iterator[Batch] = collated
        if reading == "parallel":
            batches = prefetch(collated)
        elif reading == "before":
            batches = iter(list(collated))
        began, used, waited = time.perf_counter(), time.process_time(), 0.0
        for number in range(first, first + count):
            requested = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - requested
            self._step(batch, number)
        return time.perf_counter() - began, time.process_time() - used, waited, peak_memory()

    def _step(self, batch: Batch, number: int) -> None:
        torch.manual_seed(number)
        sizes = len(batch.clips), len(batch.owner), self._model.registers, self._model.hidden_size
        self._steps.step(batch, StepRandomness.draw(0, number, *sizes))


def main(arguments: list[str]) -> None:
    parser = Parser("epoch", "Time an epoch on real shards.", package="benchmarks")
    parser.add_argument("--shards", type=Path, required=True, help="a directory written by `convert`")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="precision of the fast path"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-videos", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=2, help="batches per round; 0 for the whole epoch (default: 2)")
    options = parser.parse_args(arguments)
    changes: dict[str, Any] = {
        "model.hidden_size": options.hidden_size,
        "data.trim_frames": "batch",
        "training.precision": options.precision,
    }
    changes["training.batch_videos"] = options.batch_videos
    shards = ShardSet.open(options.shards)
    experiment = with_feature_sizes(load_experiment("tvr", changes), shards.manifest)
    videos, size = len(shards.split("train")), experiment.training.batch_videos
    full_batches = videos // size  # the last, smaller one is left out
    count = min(options.batches or full_batches, full_batches)
    print(f"{videos} videos in batches of {size}; {count} batches per round", flush=True)

    processes = {
        path: MeasuredProcess(options.threads, Epoch, path, experiment, options.shards) for path in ("fast", "plain")
    }
    for process in processes.values():
        process("before", 0, 1)
    readings = {"fast": ("fast", "parallel"), "pure": ("fast", "before"), "plain": ("plain", "between")}
    taken: dict[str, list[float]] = {name: [] for name in readings}
    used: dict[str, list[float]] = {name: [] for name in readings}
    waited: list[float] = []
    memory: dict[str, float] = {}
    for number in range(options.rounds):
        first = number * count % (full_batches - count + 1)
        for name, (path, reading) in readings.items():
            seconds, cpu, waits, memory[name] = processes[path](reading, first, count)
            taken[name].append(seconds)
            used[name].append(cpu)
            if name == "fast":
                waited.append(waits / seconds)
        rates = ", ".join(f"{name} {count * size / seconds[-1]:.1f}" for name, seconds in taken.items())
        print(f"round {number + 1}: videos/s: {rates}", flush=True)
    for process in processes.values():
        process.close()

    epoch = {name: statistics.median(rounds) * videos / (count * size) for name, rounds in taken.items()}
    ratios = {
        name: [other / fast for other, fast in zip(taken[name], taken["fast"], strict=True)]
        for name in ("plain", "pure")
    }
    results = {
        "videos": videos,
        "threads": options.threads,
        "epoch_seconds": {name: round(seconds, 2) for name, seconds in epoch.items()},
        "videos_per_second": {name: round(videos / seconds, 1) for name, seconds in epoch.items()},
        "peak_gib": {name: round(memory[name], 2) for name in ("fast", "plain")},
        "waiting": round(float(np.median(waited)), 4),
        "pure_share": round(statistics.median(ratios["pure"]), 3),
        "cpu_ratio": round(
            statistics.median(plain / fast for plain, fast in zip(used["plain"], used["fast"], strict=True)), 2
        ),
        "ratio": round(statistics.median(ratios["plain"]), 2),
    }
    print(f"epoch: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in epoch.items())}")
    print(
        f"fast path: {results['waiting']:.1%} of the time is spent waiting for data,"
        f" {results['pure_share']:.1%} in training steps"
    )
    print(
        f"the fast path is {results['ratio']:.2f} times as fast as the plain one"
        f" (median of {options.rounds} rounds; {results['cpu_ratio']:.2f} by CPU time)"
    )
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)
