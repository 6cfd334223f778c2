"""Compare two workers with one thread each to one worker with one thread, in alternating rounds.

    python -m benchmarks.scaling

Without Ray: two processes in the environment of Ray's workers that communicate through gloo, as Ray Train's workers do
on a machine without GPUs. Model and batch are the `tvr` preset's at a smaller hidden size, on random features of qvh's
sizes. A step is the forward pass, loss, backward pass, sum of gradients and optimiser, with dropout.

The cores of a machine share cache, memory and clock, and a virtual machine may not have whole cores. The same rounds
therefore also measure how much more two unrelated processes compute than one, each with half of the batch.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.measured_process import ENVIRONMENT
from benchmarks.synthetic import random_batch
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.objective import StepRandomness, training_losses
from dreamprvr_ray.training.optimizer import build_optimizer

QUERIES = 3  # per video


def train_steps(experiment: Experiment, workers: Workers, steps: int, seed: int) -> float:
    """Return the seconds that a step of the whole batch takes. Every worker must call this."""
    size = experiment.training.batch_videos
    torch.manual_seed(seed)
    model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    optimizer = build_optimizer(model, experiment.optimizer, total_steps=100)
    division = workers.division(np.full(size, QUERIES))
    batch = random_batch(experiment.data, division.videos[workers.rank], QUERIES)
    seconds = []
    for step in range(steps + 1):  # the first one warms up
        if workers.count > 1:
            dist.barrier()
        began = time.perf_counter()
        randomness = StepRandomness.draw(
            0, step, size, size * QUERIES, experiment.model.registers, experiment.model.hidden_size
        )
        losses = training_losses(
            model,
            batch,
            experiment.loss,
            hard_negatives=True,
            randomness=randomness,
            workers=workers,
            division=division,
        )
        optimizer.zero_grad()
        losses.total.backward()
        workers.sum_gradients(model.parameters())
        optimizer.step()
        if workers.count > 1:
            dist.barrier()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def work(rank: int, folder: Path, experiment: Experiment, rounds: int, steps: int, results: Connection) -> None:
    """Run one of the two processes: in each round the first one trains alone, then both train together."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    half = experiment.with_values({"training.batch_videos": experiment.training.batch_videos // 2})
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    for number in range(rounds):
        alone = train_steps(experiment, Workers(), steps, number) if rank == 0 else 0.0
        dist.barrier()
        together = train_steps(experiment, Workers(rank, 2), steps, number)
        half_alone = train_steps(half, Workers(), steps, number) if rank == 0 else 0.0
        dist.barrier()
        half_together = train_steps(half, Workers(), steps, number)
        if rank == 0:
            results.send((alone / together, 2 * half_alone / half_together, alone))
        dist.barrier()
    dist.destroy_process_group()


def main(arguments: list[str]) -> None:
    parser = Parser("scaling", "Compare two workers with one worker, one thread each.", package="benchmarks")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps per measurement (default: 3)")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--batch-videos", type=int, default=128)
    options = parser.parse_args(arguments)
    changes = {
        "model.hidden_size": options.hidden_size,
        "training.batch_videos": options.batch_videos,
        "data.video_size": 384,
        "data.text_size": 384,
    }
    experiment = load_experiment("tvr", changes)
    os.environ |= ENVIRONMENT
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-scaling-") as folder:
        worker_arguments = [
            (rank, Path(folder), experiment, options.rounds, options.steps, sender) for rank in range(2)
        ]
        processes = [context.Process(target=work, args=values, daemon=True) for values in worker_arguments]
        for process in processes:
            process.start()
        ratios, unrelated = [], []
        for number in range(options.rounds):
            ratio, unrelated_ratio, alone = receiver.recv()
            ratios.append(ratio)
            unrelated.append(unrelated_ratio)
            rate = options.batch_videos / alone
            print(
                f"round {number + 1}: one worker {rate:.1f} videos/s, two {rate * ratio:.1f} ({ratio:.2f} times);"
                f" unrelated processes {unrelated_ratio:.2f} times",
                flush=True,
            )
        for process in processes:
            process.join()
    ratio, machine = statistics.median(ratios), statistics.median(unrelated)
    print(
        f"two workers train {ratio:.2f} times as fast as one (median of {options.rounds} rounds);"
        f" two unrelated processes compute {machine:.2f} times as much as one"
    )
    if options.json:
        print_json(
            {"ratio": round(ratio, 3), "ratios": [round(value, 3) for value in ratios], "unrelated": round(machine, 3)}
        )


if __name__ == "__main__":
    run(main)
