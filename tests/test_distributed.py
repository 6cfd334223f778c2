"""Any number of workers computes what one computes: real Ray Train groups that communicate through gloo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import torch
import torch.distributed as dist
from support import small_models
from torch import Tensor

from dreamprvr_ray import distributed
from dreamprvr_ray.config import AUTO_PRECISION, load_experiment
from dreamprvr_ray.config_sections import CLIPS, FRAMES, OptimizerConfig, TrimFrames
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.distributed import Traffic, Workers, token_traffic
from dreamprvr_ray.evaluation.retrieval import evaluate
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.runtime.ray_internals.trainers import Trainer
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.runtime.session import API_SERVER
from dreamprvr_ray.runtime.train_run import scaling_config
from dreamprvr_ray.runtime.worker import process_group
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.objective import StepRandomness, training_losses
from dreamprvr_ray.training.optimizer import build_optimizer
from dreamprvr_ray.training.reporter import EpochResult, Snapshot

COUNTS = (2, 3, 4)  # workers
SPLIT = small_models.MemorySplit([3, 1, 6, 2, 1, 1, 4, 2, 5, 1, 2, 3, 6])
PRECISIONS = (  # `training.precision`, and what `auto` means on the CPUs of two workers
    ("fp32", ("bf16", "bf16")),
    ("bf16", ("fp32", "fp32")),
    ("auto", ("bf16", "fp32")),
    ("auto", ("fp32", "bf16")),
    ("auto", ("bf16", "bf16")),
)
STEPS = 20  # of a training with batches of 1 to 5 videos: in some, workers have no video


@dataclass(frozen=True)
class Case:
    """A batch of the first `videos` videos in reverse, so that the order of queries differs from the split's."""

    videos: int
    hard: bool
    registers: int = 3
    dtype: torch.dtype = torch.float64
    trim_frames: TrimFrames = "exact"
    ablation: tuple[tuple[str, str], ...] = ()  # changes of the model's configuration

    def __str__(self) -> str:
        kind = "hard" if self.hard else "random"
        dtype = str(self.dtype).removeprefix("torch.")
        ablation = "".join(f", {value}" for _, value in self.ablation)
        return f"{self.videos} videos, {self.registers} registers, {kind}, {dtype}, {self.trim_frames}{ablation}"

    def tolerance(self, largest: float) -> float:
        """Return the tolerance for an entry of a tensor whose largest entry is given."""
        return 1e-10 * largest + 1e-12 if self.dtype == torch.float64 else 1e-5 * largest + 1e-6


CASES = [
    *(Case(videos, hard) for videos in range(1, 14) for hard in (False, True)),
    *(Case(videos, hard, dtype=torch.float32) for videos in (1, 2, 5, 13) for hard in (False, True)),
    Case(2, False, registers=0),
    Case(5, True, registers=0),
    *(Case(videos, True, trim_frames="batch") for videos in (1, 5, 13)),
    *(Case(videos, True, ablation=(("diffusion_start", "noise"),)) for videos in (2, 13)),
    Case(5, True, ablation=(("register_source", "pooling"),)),
]


def backward(model: DreamPRVR, videos: np.ndarray, hard: bool, workers: Workers, step: int = 0) -> Tensor:
    """Return the losses of a global batch, and leave its gradient, summed over the workers, in the model."""
    division = workers.division(np.diff(SPLIT.first_query)[videos])
    config, dtype = model.config, next(model.parameters()).dtype
    losses = training_losses(
        model,
        SPLIT.batch(workers.divide(videos)[workers.rank], dtype, model.trimmed),
        small_models.loss_config(),
        hard_negatives=hard,
        randomness=StepRandomness.for_model(0, step, sum(division.videos), sum(division.queries), config),
        workers=workers,
        division=division,
    )
    model.zero_grad()
    losses.total.backward()
    workers.sum_gradients(model.parameters())
    return torch.stack([value.detach() for value in vars(losses).values()])


@cache
def built(
    registers: int, dtype: torch.dtype, trim_frames: TrimFrames, ablation: tuple[tuple[str, str], ...]
) -> DreamPRVR:
    """Build a model that several cases share; its weights never change."""
    return small_models.build(trim_frames=trim_frames, registers=registers, **dict(ablation)).to(dtype)


def compute(workers: Workers) -> dict[str, Any]:
    """Compute everything that the tests compare."""
    results: dict[str, Any] = {}
    for case in CASES:
        model = built(case.registers, case.dtype, case.trim_frames, case.ablation)
        losses = backward(model, np.arange(case.videos)[::-1], case.hard, workers)
        results[str(case)] = losses, {name: parameter.grad for name, parameter in model.named_parameters()}
    results["traffic"] = workers.traffic

    # Every worker has different weights, which the first one's replace.
    model = small_models.build(seed=workers.rank)
    workers.copy_from_first(model.state_dict().values())
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0), total_steps=STEPS)
    for step in range(STEPS):
        backward(model, (np.arange(1 + step % 5) * 3 + step) % 13, step >= STEPS // 2, workers, step)
        optimizer.step()
    results["trained"] = model.state_dict()

    model = small_models.build().float()
    splits = {"larger": SPLIT, "of one video": small_models.MemorySplit([1])}
    retrieval = {name: evaluate(model, split, ScoreWeights(0.6), workers) for name, split in splits.items()}  # type: ignore[arg-type]
    trimmed = small_models.build(trim_frames="batch").float()
    retrieval["trimmed"] = evaluate(trimmed, SPLIT, ScoreWeights(0.6), workers)  # type: ignore[arg-type]
    from_noise = small_models.build(diffusion_start="noise").float()
    retrieval["from noise"] = evaluate(from_noise, SPLIT, ScoreWeights(0.6), workers)  # type: ignore[arg-type]
    results["retrieval"] = retrieval

    gathered = workers.gather_for_same_loss(torch.full((workers.rank, 2), float(workers.rank)), range(workers.count))
    results["gathered"] = gathered
    results["summed"] = workers.sum_for_same_loss(torch.tensor([1.0, workers.rank]))
    parameters = [torch.zeros(size, requires_grad=True) for size in (4, 3, 6, 1, 0)]
    for number, parameter in enumerate(parameters):
        if number != workers.rank:  # one gradient is missing on each worker
            parameter.grad = torch.full_like(parameter, 10.0**workers.rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "BUCKET", 5)
        workers.sum_gradients(parameters)
    results["buckets"] = [parameter.grad for parameter in parameters]
    cpu = torch.device("cpu")
    last = workers.count - 1
    results["all"] = [workers.all(condition, cpu) for condition in (True, False, workers.rank != last)]
    return results


def train(workers: Workers, precision: str, auto: Sequence[str], shards: Path) -> tuple[dict[str, Tensor], float]:
    """Train an epoch on CPUs that resolve `auto` to `auto[rank]`; return the weights and the loss."""
    weights: dict[str, Tensor] = {}

    class Reporter:
        def latest_checkpoint(self) -> AbstractContextManager[None]:
            return nullcontext()

        def on_training_start(self) -> None:
            pass

        def report(self, result: EpochResult, snapshot: Snapshot) -> None:
            weights.update(snapshot().weights)

    changes = {"epochs": 1, "batch_videos": 8, "precision": precision}
    experiment = load_experiment("demo", {f"training.{key}": value for key, value in changes.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(AUTO_PRECISION, auto[workers.rank])
        result = fit(experiment, ShardSet.open(shards), Reporter(), workers, torch.device("cpu"))
    assert result is not None
    return weights, result.losses["total"]


def work(job: dict[str, str]) -> None:
    """Run one worker of a group of four, and then of the groups of the first two and the first three."""
    directory, shards = Path(job["directory"]), Path(job["shards"])
    torch.set_num_threads(1)
    with process_group() as four:
        torch.save(compute(four), directory / f"4-{four.rank}.pt")
    for count in (2, 3):
        if four.rank < count:
            dist.init_process_group(
                "gloo", init_method=f"file://{directory}/meet-{count}", rank=four.rank, world_size=count
            )
            workers = Workers(four.rank, count)
            torch.save(compute(workers), directory / f"{count}-{workers.rank}.pt")
            if count == 2:
                trained = {
                    (precision, *auto): train(workers, precision, auto, shards) for precision, auto in PRECISIONS
                }
                torch.save(trained, directory / f"trained-{workers.rank}.pt")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory, demo_shards: Path) -> Path:
    """The results of all groups' workers, run by Ray Train on a Ray that is started as if it had four CPUs."""
    variables = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
        # Ray Train must not ask the dashboard of another test's Ray for its controller: it would take the controller
        # for dead and remove the workers.
        API_SERVER: "http://127.0.0.1:1",
    }  # the workers import this file
    directory = tmp_path_factory.mktemp("workers")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    try:
        storage = ray.train.RunConfig(name="run", storage_path=str(directory))
        job = {"directory": str(directory), "shards": str(demo_shards)}
        scaling = scaling_config(WorkerGroup(4, 1, 0))
        Trainer(work, train_loop_config=job, scaling_config=scaling, run_config=storage).fit()
    finally:
        ray.shutdown()
    return directory


@pytest.fixture(scope="module", params=COUNTS, ids=lambda count: f"{count} workers")
def workers_results(request: pytest.FixtureRequest, computed: Path) -> list[dict[str, Any]]:
    """The results of each worker of a group of two, three or four."""
    return [torch.load(computed / f"{request.param}-{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The results of a single worker."""
    return compute(Workers())


def assert_equal_up_to_rounding(ours: Tensor, theirs: Tensor, case: Case, name: str) -> None:
    error, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= case.tolerance(largest), f"{name}: {error} of {largest}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_and_gradients_equal_those_of_one_worker(
    case: Case, workers_results: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    losses, gradients = alone[str(case)]
    assert losses[-1] > 0 and (case.videos == 1 or any(gradient.any() for gradient in gradients.values()))
    for results in workers_results:
        own_losses, own_gradients = results[str(case)]
        assert_equal_up_to_rounding(own_losses, losses, case, "losses")
        assert own_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert_equal_up_to_rounding(own_gradients[name], gradient, case, name)


def test_weights_stay_equal_on_all_workers(workers_results: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for name, weight in alone["trained"].items():
        for results in workers_results:
            assert torch.equal(results["trained"][name], workers_results[0]["trained"][name]), name
            assert (results["trained"][name] - weight).abs().max() <= 1e-8, name
    assert not torch.equal(alone["trained"]["query_pooling.weight"], small_models.build().query_pooling.weight)


def test_every_worker_gets_the_whole_evaluation(workers_results: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for results in workers_results:
        assert results["retrieval"] == alone["retrieval"]
    assert alone["retrieval"]["larger"].videos == 13 and alone["retrieval"]["larger"].recall.queries == 37


def test_traffic_is_counted(workers_results: list[dict[str, Any]]) -> None:
    # All workers send the same number of bytes, because rows are padded to the largest part.
    counts = {(results["traffic"].loss, results["traffic"].gradients) for results in workers_results}
    assert len(counts) == 1 and all(min(both) > 0 for both in counts)


def test_traffic_of_a_ring_of_workers() -> None:
    # Two workers with 3 and 2 videos, 10 tokens of 4 entries: each sends its padded videos once, and half of the sum of
    # gradients twice.
    assert token_traffic((3, 2), tokens=10, size=4) == 3 * 160 + 5 * 160
    assert token_traffic((5,), tokens=CLIPS + FRAMES, size=384) == 0
    assert Traffic(7, 5).since(Traffic(3, 4)) == Traffic(4, 1)


def test_uneven_parts_are_gathered_in_order(workers_results: list[dict[str, Any]]) -> None:
    count = len(workers_results)
    for results in workers_results:
        assert results["gathered"][:, 0].tolist() == [rank for rank in range(count) for _ in range(rank)]
        assert results["gathered"].shape[1] == 2
        assert results["summed"].tolist() == [count, sum(range(count))]


def test_gradients_are_summed_in_buckets_and_missing_ones_count_as_zero(workers_results: list[dict[str, Any]]) -> None:
    ranks = range(len(workers_results))
    expected = [sum(10.0**rank for rank in ranks if rank != number) for number in range(4)]
    for results in workers_results:
        assert [set(gradient.tolist()) for gradient in results["buckets"]] == [{value} for value in expected] + [set()]


def test_a_condition_holds_only_if_it_holds_on_every_worker(workers_results: list[dict[str, Any]]) -> None:
    for results in workers_results:
        assert results["all"] == [True, False, False]


def test_workers_on_unlike_cpus_agree_on_one_precision(computed: Path) -> None:
    for rank in range(2):
        trained = torch.load(computed / f"trained-{rank}.pt", weights_only=False)
        fp32, bf16 = trained["fp32", "bf16", "bf16"], trained["bf16", "fp32", "fp32"]
        assert_same_training(trained["auto", "bf16", "fp32"], fp32)
        assert_same_training(trained["auto", "fp32", "bf16"], fp32)
        assert_same_training(trained["auto", "bf16", "bf16"], bf16)
        assert bf16[1] != fp32[1]


def assert_same_training(ours: tuple[dict[str, Tensor], float], theirs: tuple[dict[str, Tensor], float]) -> None:
    assert ours[1] == theirs[1] and all(torch.equal(weight, theirs[0][name]) for name, weight in ours[0].items())


def test_division_of_a_batch() -> None:
    division = Workers(1, 3).division(np.array([2, 1, 3, 1]))
    assert division.owner.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert division.videos == (1, 1, 2) and division.queries == (2, 1, 4)
    few = Workers(0, 3).division(np.array([2]))
    assert few.videos == (0, 0, 1) and few.queries == (0, 0, 2)
    assert Workers().division(np.array([2, 1])).videos == (2,)


def test_a_single_worker_does_not_communicate() -> None:
    assert not dist.is_initialized()
    workers, rows = Workers(), torch.randn(3, 2)
    assert workers.gather_for_own_part(rows, [3]) is rows
    assert workers.gather_for_same_loss(rows, [3]) is rows
    assert workers.sum_for_same_loss(rows) is rows
    workers.copy_from_first([rows])
    parameter = torch.zeros(2, requires_grad=True)
    workers.sum_gradients([parameter])
    assert parameter.grad is None
