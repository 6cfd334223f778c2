"""python -m benchmarks.scaling: two workers with one thread each against one worker with one thread, alternating in one run.

Without Ray: two processes in the environment of Ray's workers that talk through gloo, as Ray Train's do on a machine without GPUs. Model and
batch are the `tvr` preset's, at a smaller hidden size, on random features of qvh's sizes; a step is forward, loss, backward, sum of gradients and
optimiser, dropout on.

Cores of one machine share cache, memory and clock, and a virtual machine's may not even be its own: how much more two processes do that have
nothing to do with each other, each with half of the batch, is measured in the same rounds.
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

from benchmarks.sides import ENVIRONMENT
from benchmarks.synthetic import random_batch
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.objective import StepRandomness, training_losses
from dreamprvr_ray.training.optimizer import build_optimizer

QUERIES = 3  # of a video


def train_steps(experiment: Experiment, workers: Workers, steps: int, seed: int) -> float:
    """Seconds a step of a whole batch takes these workers, all of whom must call this."""
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
    """One of two processes: the first trains alone, then both together, so many rounds."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    half = experiment.with_values({"training.batch_videos": experiment.training.batch_videos // 2})
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    for number in range(rounds):
        alone = train_steps(experiment, Workers(), steps, number) if rank == 0 else 0.0
        dist.barrier()
        together = train_steps(experiment, Workers(rank, 2), steps, number)
        half_alone = train_steps(half, Workers(), steps, number) if rank == 0 else 0.0
        dist.barrier()
        half_beside = train_steps(half, Workers(), steps, number)
        if rank == 0:
            results.send((alone / together, 2 * half_alone / half_beside, alone))
        dist.barrier()
    dist.destroy_process_group()


def main(arguments: list[str]) -> None:
    parser = Parser("scaling", "Two workers against one, with one thread each.", package="benchmarks")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="a round and side")
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
        arguments_of = [(rank, Path(folder), experiment, options.rounds, options.steps, sender) for rank in range(2)]
        processes = [context.Process(target=work, args=each, daemon=True) for each in arguments_of]
        for process in processes:
            process.start()
        ratios, unrelated = [], []
        for number in range(options.rounds):
            ratio, beside, alone = receiver.recv()
            ratios.append(ratio)
            unrelated.append(beside)
            rate = options.batch_videos / alone
            print(
                f"round {number + 1}: one worker {rate:.1f} videos/s, two {rate * ratio:.1f}: {ratio:.2f} times; unrelated processes {beside:.2f}",
                flush=True,
            )
        for process in processes:
            process.join()
    ratio, machine = statistics.median(ratios), statistics.median(unrelated)
    print(
        f"two workers train {ratio:.2f} times as fast as one (median of {options.rounds} rounds);"
        f" two unrelated processes do {machine:.2f} times as much"
    )
    if options.json:
        print_json(
            {"ratio": round(ratio, 3), "ratios": [round(each, 3) for each in ratios], "unrelated": round(machine, 3)}
        )


if __name__ == "__main__":
    run(main)
