"""python -m benchmarks.epoch --shards SHARDS: an epoch of real shards on the CPU, against the plain path's and against its own pure steps.

The `tvr` preset at hidden size 128 with `data.trim_frames: batch`. The fast path reads as the training loop does, in a thread beside the
steps; the plain one follows the specification branch by branch in fp32 on 128 padded frames, and reads between its steps. Both take the same
batches of the same epoch in turns; `pure` is the fast path's time for these batches when they lie in memory.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paths import FastSteps, PlainSteps
from benchmarks.sides import Side, peak_memory
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.batches import Batch, collate, plan_epoch, prefetch
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.training.loop import with_feature_sizes
from dreamprvr_ray.training.objective import StepRandomness


class Epoch:
    """Batches of the first epoch of a path."""

    def __init__(self, path: str, experiment: Experiment, shards: Path) -> None:
        self._split = ShardSet.open(shards).split("train")
        self._plan = plan_epoch(len(self._split), experiment.training.batch_videos, 0, 0)
        self._steps = (
            FastSteps(experiment, torch.device("cpu"), experiment.training.precision)
            if path == "fast"
            else PlainSteps(experiment)
        )
        self._trimmed = path == "fast" and experiment.data.trim_frames == "batch"
        self._model = experiment.model

    def __call__(self, reading: str, first: int, count: int) -> tuple[float, float, float, float]:
        """Seconds that batches first .. first + count - 1 take, those of the CPU, those spent waiting for data, and the peak memory in GiB.

        They are read `beside` the steps, `between` them or `before`, which does not count.
        """
        made = (collate(self._split, videos, self._trimmed) for videos in self._plan[first : first + count])
        batches = prefetch(made) if reading == "beside" else iter(list(made)) if reading == "before" else made
        began, used, waited = time.perf_counter(), time.process_time(), 0.0
        for number in range(first, first + count):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self._step(batch, number)
        return time.perf_counter() - began, time.process_time() - used, waited, peak_memory()

    def _step(self, batch: Batch, number: int) -> None:
        torch.manual_seed(number)
        sizes = len(batch.clips), len(batch.owner), self._model.registers, self._model.hidden_size
        self._steps.step(batch, StepRandomness.draw(0, number, *sizes))


def main(arguments: list[str]) -> None:
    parser = Parser("epoch", "The speed of an epoch on real shards.", package="benchmarks")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the fast path")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-videos", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=2, help="a round; 0 for the whole epoch")
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
    whole = videos // size  # but for the last, smaller one
    count = min(options.batches or whole, whole)
    print(f"{videos} videos in batches of {size}, of which a round takes {count}", flush=True)

    sides = {path: Side(options.threads, Epoch, path, experiment, options.shards) for path in ("fast", "plain")}
    for side in sides.values():
        side("before", 0, 1)
    readings = {"fast": ("fast", "beside"), "pure": ("fast", "before"), "plain": ("plain", "between")}
    taken: dict[str, list[float]] = {name: [] for name in readings}
    used: dict[str, list[float]] = {name: [] for name in readings}
    waited: list[float] = []
    memory: dict[str, float] = {}
    for number in range(options.rounds):
        first = number * count % (whole - count + 1)
        for name, (path, reading) in readings.items():
            seconds, cpu, waits, memory[name] = sides[path](reading, first, count)
            taken[name].append(seconds)
            used[name].append(cpu)
            if name == "fast":
                waited.append(waits / seconds)
        print(
            f"round {number + 1}: videos/s: {', '.join(f'{name} {count * size / each[-1]:.1f}' for name, each in taken.items())}",
            flush=True,
        )
    for side in sides.values():
        side.close()

    epoch = {name: statistics.median(each) * videos / (count * size) for name, each in taken.items()}
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
    print(f"an epoch: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in epoch.items())}")
    print(
        f"the fast one waits for data {results['waiting']:.1%} of its time; its pure steps are {results['pure_share']:.1%} of it"
    )
    print(
        f"fast is {results['ratio']:.2f} times as fast as plain (median of {options.rounds} rounds; by CPU time {results['cpu_ratio']:.2f})"
    )
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)
