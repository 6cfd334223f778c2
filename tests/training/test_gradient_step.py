"""Captured steps and compiled chains give the values and gradients of the plain path; on a GPU if there is one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.synthetic import random_batch
from dreamprvr_ray.checkpoints.checkpoint import read_weights
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.device import Precision
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.kernels import compiled, cpu
from dreamprvr_ray.training.gradient_step import GradientPass
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.losses import Losses
from dreamprvr_ray.training.objective import StepRandomness, training_losses
from dreamprvr_ray.training.reporter import DirectoryReporter

SMALL = {
    "model.hidden_size": 32,
    "model.heads": 2,
    "model.branches": 3,
    "model.registers": 2,
    "model.diffusion_steps": 2,
}
NO_DROPOUT = {"model.dropout": 0.0, "model.input_dropout": 0.0}
CPU = torch.device("cpu")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def experiment(**changes: Any) -> Experiment:
    return load_experiment("demo", SMALL | {name.replace("__", "."): value for name, value in changes.items()})


def build(
    setting: Experiment, device: torch.device, compile_chains: bool = False, precision: Precision = "fp32"
) -> tuple[DreamPRVR, GradientPass]:
    torch.manual_seed(0)
    model = DreamPRVR(setting.model, setting.data.video_size, setting.data.text_size).to(device).train()
    model.compile_chains(compile_chains)
    return model, GradientPass(model, setting.loss, precision)


def drawn(setting: Experiment, videos: int = 6, queries: int = 12, step: int = 0) -> StepRandomness:
    return StepRandomness.for_model(0, step, videos, queries, setting.model)


def values(losses: Losses) -> dict[str, float]:
    return {field.name: getattr(losses, field.name).item() for field in fields(losses)}


def gradients(model: DreamPRVR) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Compare each tensor within `tolerance` of its norm or, if it is all rounding error, of the largest norm."""
    assert ours.keys() == theirs.keys()
    largest = max(float(tensor.norm()) for tensor in theirs.values())
    for name, tensor in ours.items():
        assert float((tensor - theirs[name]).norm()) <= tolerance * (float(theirs[name].norm()) + 0.01 * largest), name


def test_a_pass_on_the_cpu_computes_the_objective_and_its_gradient() -> None:
    setting = experiment()
    model, passes = build(setting, CPU)
    batch = random_batch(setting.data, 6, 2)
    torch.manual_seed(1)
    losses = training_losses(model, batch, setting.loss, hard_negatives=True, randomness=drawn(setting))
    losses.total.backward()
    expected = gradients(model)
    torch.manual_seed(1)
    ours = passes(batch, drawn(setting))
    assert values(ours) == values(losses)
    assert all(
        torch.equal(gradient, expected[name]) for name, gradient in gradients(model).items()
    )  # of this step only
    assert not ours.total.requires_grad


ABLATIONS: list[dict[str, Any]] = [
    {},
    {"model__register_source": "pooling"},
    {"model__diffusion_start": "noise", "loss__textual_perturbation": False},
]


@pytest.mark.parametrize("changes", [*ABLATIONS, {"model__registers": 0}], ids=str)
def test_compiled_chains_equal_the_plain_operations(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    setting = experiment(**{name.replace(".", "__"): value for name, value in NO_DROPOUT.items()}, **changes)
    batch = random_batch(setting.data, 6, 2)
    model, passes = build(setting, CPU)
    plain = values(passes(batch, drawn(setting)))
    expected = gradients(model)
    used = []
    monkeypatch.setattr(cpu, "supports", lambda x: False)
    monkeypatch.setattr(compiled, "supports", lambda x: True)
    monkeypatch.setattr(compiled, "compile_chain", lambda chain: used.append(chain.__name__) or chain)
    model, passes = build(setting, CPU, compile_chains=True)
    assert values(passes(batch, drawn(setting))) == pytest.approx(plain, rel=1e-5)
    assert_close(gradients(model), expected, 1e-4)
    chains = {"normalise_and_drop", "add_and_normalise", "rectify_and_drop", "softmax_and_drop", "sum_by_softmax"}
    assert set(used) == chains


@on_a_gpu
@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_captured_steps_equal_launched_steps(compiled: bool, changes: dict[str, Any]) -> None:
    device, setting = torch.device("cuda"), experiment(**changes)
    batches = [random_batch(setting.data, 6, 2, seed).to(device) for seed in range(3)]
    batches[2] = shortened(batches[2])
    model, passes = build(setting, device, compiled, "bf16")
    other, launches = build(setting, device, compiled, "bf16")
    seen = []
    for step in range(6):
        batch, hard = batches[step % 3], step > 1
        torch.manual_seed(step)
        ours = values(passes(batch, drawn(setting, step=step), hard=hard))
        torch.manual_seed(step)
        theirs = values(launches.launch(*launches.copy_to_buffers(batch, drawn(setting, step=step)), hard=hard))
        assert ours == theirs, step
        assert all(torch.equal(gradient, gradients(other)[name]) for name, gradient in gradients(model).items()), step
        seen.append(ours["total"])
    assert len(set(seen)) == 6


def shortened(batch: Batch) -> Batch:
    """Return the batch with its queries cut to 20 tokens."""
    return Batch(**(vars(batch) | {"tokens": batch.tokens[:, :20], "token_mask": batch.token_mask[:, :20]}))


@on_a_gpu
def test_dropout_depends_on_the_seed_alone() -> None:
    device, setting = torch.device("cuda"), experiment()
    batch = random_batch(setting.data, 6, 2).to(device)
    model, passes = build(setting, device, precision="bf16")
    totals, all_gradients = [], []
    for seed in (5, 5, 5, 7):  # launched, captured, replayed, replayed
        torch.manual_seed(seed)
        totals.append(passes(batch, drawn(setting)).total.item())
        all_gradients.append(gradients(model))
    assert totals[0] == totals[1] == totals[2] != totals[3]
    assert all(torch.equal(gradient, all_gradients[2][name]) for name, gradient in all_gradients[0].items())
    name = "frame_input.layer.project.weight"
    assert not torch.equal(all_gradients[3][name], all_gradients[2][name])


@on_a_gpu
@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_fast_path_equals_the_plain_path(compiled: bool, changes: dict[str, Any]) -> None:
    device = torch.device("cuda")
    setting = experiment(**{name.replace(".", "__"): value for name, value in NO_DROPOUT.items()}, **changes)
    batch = random_batch(setting.data, 6, 2).to(device)
    plain, launches = build(setting, device)
    expected = values(launches.launch(batch, drawn(setting)))
    model, passes = build(setting, device, compiled)
    for _ in range(3):
        assert values(passes(batch, drawn(setting))) == pytest.approx(expected, rel=1e-4)
        assert_close(gradients(model), gradients(plain), 1e-3)


@on_a_gpu
def test_a_training_on_a_gpu_is_repeatable(demo_shards: Path, tmp_path: Path) -> None:
    changes = {"training__epochs": 3, "training__batch_videos": 10, "loss__hard_negative_start_epoch": 1}
    weights = []
    for run in ("one", "other"):
        reporter = DirectoryReporter(tmp_path / run)
        fit(experiment(**changes), ShardSet.open(demo_shards), reporter, device=torch.device("cuda"))
        weights.append(read_weights(reporter.last))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
