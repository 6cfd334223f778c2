"""The two paths that benchmarks compare are equivalent: steps without dropout give the same weights."""

from __future__ import annotations

from pathlib import Path

import torch
from support import reference_model

from benchmarks import opening
from benchmarks.synthetic import random_batch
from benchmarks.training_steps import FastSteps, PlainSteps
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.training.objective import StepRandomness

SMALL = {
    "model.hidden_size": 32,
    "model.heads": 2,
    "model.branches": 3,
    "model.registers": 2,
    "model.diffusion_steps": 2,
    "optimizer.warmup_fraction": 0.0,
}


def test_both_paths_take_the_same_steps() -> None:
    experiment = load_experiment(
        "demo", SMALL | {"model.dropout": 0.0, "model.input_dropout": 0.0, "optimizer.learning_rate": 0.01}
    )
    fast, plain = FastSteps(experiment, torch.device("cpu"), "fp32"), PlainSteps(experiment)
    before = {name: weight.clone() for name, weight in reference_model.plain_weights(fast.model).items()}
    for step in range(3):
        batch, randomness = random_batch(experiment.data, 6, 2, seed=step), StepRandomness.draw(0, step, 6, 12, 2, 32)
        for path in (fast, plain):
            path.step(batch, randomness)
    moved = []
    for name, weight in reference_model.plain_weights(fast.model).items():
        change = weight - before[name]
        apart = (weight - plain._weights[name]).abs().median()
        assert apart <= 1e-3 * change.abs().max() + 1e-5, (
            name
        )  # of 0.03; keys' biases move by the rounding of their gradient
        moved.append(bool(change.any()))
    assert sum(moved) > 0.9 * len(moved)


def test_shards_of_a_benchmark_open(tmp_path: Path) -> None:
    opening.write(tmp_path, videos=7, queries_per_video=2, videos_per_shard=3)
    split = ShardSet.open(tmp_path).split("train")
    assert len(split) == 7 and len(split.owner) == 14
