"""Several workers equal one: real processes that talk through gloo, in float64."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
from torch import Tensor

from dreamprvr_ray import distributed
from dreamprvr_ray.config import OptimizerConfig
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.objective import StepRandomness, training_losses
from dreamprvr_ray.optimizer import build_optimizer
from dreamprvr_ray.retrieval import evaluate

COUNTS = (2, 3)  # workers
SPLIT = tiny.MemorySplit([3, 1, 6, 2, 1, 1, 4, 2, 5, 1, 2, 3, 6])
STEPS = ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10], [11])  # the batches of a short training; the last leaves workers without a video


@dataclass(frozen=True)
class Case:
    """A batch of the first `videos` videos, backwards so that the queries' order is not the split's."""

    videos: int
    registers: int
    hard: bool

    def __str__(self) -> str:
        return f"{self.videos} videos, {self.registers} registers, {'hard' if self.hard else 'random'}"


CASES = [
    Case(1, 3, True),
    Case(2, 0, False),
    Case(2, 3, True),
    Case(3, 3, False),
    Case(5, 0, True),
    Case(8, 3, False),
    Case(13, 3, False),
    Case(13, 3, True),
]


def backward(model: DreamPRVR, videos: np.ndarray, hard: bool, workers: Workers, step: int = 0) -> Tensor:
    """The loss of a global batch; the gradient, summed over the workers, is left in the model."""
    division = workers.division(np.diff(SPLIT.first_query)[videos])
    config = model.config
    losses = training_losses(
        model,
        SPLIT.batch(workers.divide(videos)[workers.rank]),
        tiny.loss_config(),
        hard_negatives=hard,
        randomness=StepRandomness.draw(0, step, sum(division.videos), sum(division.queries), config.registers, config.hidden_size),
        workers=workers,
        division=division,
    )
    model.zero_grad()
    losses.total.backward()
    workers.sum_gradients(model.parameters())
    return torch.stack([value.detach() for value in vars(losses).values()])


def compute(workers: Workers) -> dict[str, Any]:
    """Everything that the tests compare."""
    results: dict[str, Any] = {}
    for case in CASES:
        model = tiny.build(registers=case.registers)
        losses = backward(model, np.arange(case.videos)[::-1], case.hard, workers)
        results[str(case)] = losses, {name: parameter.grad for name, parameter in model.named_parameters()}

    # Weights of its own on every worker, which the first one's replace.
    model = tiny.build(seed=workers.rank)
    workers.copy_from_first(model.state_dict().values())
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.01, warmup_fraction=0.0), total_steps=len(STEPS))
    for step, videos in enumerate(STEPS):
        backward(model, np.array(videos), step % 2 == 1, workers, step)
        optimizer.step()
    results["trained"] = model.state_dict()

    model = tiny.build().float()
    splits = {"larger": SPLIT, "of one video": tiny.MemorySplit([1])}
    results["retrieval"] = {name: evaluate(model, split, 0.6, workers) for name, split in splits.items()}  # type: ignore[arg-type]

    gathered = workers.gather_for_same_loss(torch.full((workers.rank, 2), float(workers.rank)), range(workers.count))
    results["gathered"] = gathered
    results["summed"] = workers.sum_for_same_loss(torch.tensor([1.0, workers.rank]))
    distributed.GRADIENT_BUCKET = 5
    parameters = [torch.zeros(size, requires_grad=True) for size in (4, 3, 6, 1, 0)]
    for number, parameter in enumerate(parameters):
        if number != workers.rank:  # each worker lacks a gradient
            parameter.grad = torch.full_like(parameter, 10.0**workers.rank)
    workers.sum_gradients(parameters)
    results["buckets"] = [parameter.grad for parameter in parameters]
    return results


def work(rank: int, count: int, directory: Path) -> None:
    """One worker's process."""
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'store'}", rank=rank, world_size=count, timeout=datetime.timedelta(seconds=120))
    torch.save(compute(Workers(rank, count)), directory / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=COUNTS, ids=lambda count: f"{count} workers")
def workers_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What each worker computed."""
    count, directory = request.param, tmp_path_factory.mktemp("workers")
    # One process imports torch (and what its optimisers import when they are first made), and the workers are forks of it: seconds less
    # for each of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    processes = [context.Process(target=work, args=(rank, count, directory)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=180)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * count, f"exit codes {codes}"
    yield [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(count)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one worker computes."""
    bucket = distributed.GRADIENT_BUCKET
    try:
        return compute(Workers())
    finally:
        distributed.GRADIENT_BUCKET = bucket


def assert_equal_but_for_rounding(ours: Tensor, theirs: Tensor, name: str) -> None:
    error = (ours - theirs).abs().max().item()
    assert error <= 1e-10 * theirs.abs().max().item() + 1e-12, f"{name}: {error} of {theirs.abs().max().item()}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_and_every_gradient_equal_one_workers(case: Case, workers_results: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    losses, gradients = alone[str(case)]
    assert losses[-1] > 0 and (case.videos == 1 or any(gradient.any() for gradient in gradients.values()))
    for results in workers_results:
        own_losses, own_gradients = results[str(case)]
        assert_equal_but_for_rounding(own_losses, losses, "losses")
        assert own_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert_equal_but_for_rounding(own_gradients[name], gradient, name)


def test_training_keeps_the_weights_equal(workers_results: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for name, weight in alone["trained"].items():
        for results in workers_results:
            assert torch.equal(results["trained"][name], workers_results[0]["trained"][name]), name
            assert (results["trained"][name] - weight).abs().max() <= 1e-8, name
    assert not torch.equal(alone["trained"]["query_pooling.weight"], tiny.build().query_pooling.weight)


def test_every_worker_gets_the_whole_retrieval(workers_results: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for results in workers_results:
        assert results["retrieval"] == alone["retrieval"]
    assert alone["retrieval"]["larger"].videos == 13 and alone["retrieval"]["larger"].recall.queries == 37


def test_rows_of_uneven_workers_are_gathered_in_order(workers_results: list[dict[str, Any]]) -> None:
    count = len(workers_results)
    for results in workers_results:
        assert results["gathered"][:, 0].tolist() == [rank for rank in range(count) for _ in range(rank)]
        assert results["gathered"].shape[1] == 2
        assert results["summed"].tolist() == [count, sum(range(count))]


def test_gradients_are_summed_in_buckets_and_a_missing_one_is_zero(workers_results: list[dict[str, Any]]) -> None:
    ranks = range(len(workers_results))
    expected = [sum(10.0**rank for rank in ranks if rank != number) for number in range(4)]
    for results in workers_results:
        assert [set(gradient.tolist()) for gradient in results["buckets"]] == [{value} for value in expected] + [set()]


def test_division_of_a_batch() -> None:
    division = Workers(1, 3).division(np.array([2, 1, 3, 1]))
    assert division.owner.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert division.videos == (1, 1, 2) and division.queries == (2, 1, 4)
    few = Workers(0, 3).division(np.array([2]))
    assert few.videos == (0, 0, 1) and few.queries == (0, 0, 2)
    assert Workers().division(np.array([2, 1])).videos == (2,)


def test_a_worker_alone_communicates_with_nobody() -> None:
    assert not dist.is_initialized()
    workers, rows = Workers(), torch.randn(3, 2)
    assert workers.gather_for_own_part(rows, [3]) is rows
    assert workers.gather_for_same_loss(rows, [3]) is rows
    assert workers.sum_for_same_loss(rows) is rows
    workers.copy_from_first([rows])
    parameter = torch.zeros(2, requires_grad=True)
    workers.sum_gradients([parameter])
    assert parameter.grad is None
