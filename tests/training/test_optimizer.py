"""The optimiser against its definition (docs/model.md, section 4) and recorded steps of the authors' implementation."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamprvr_ray.config_sections import ModelConfig, OptimizerConfig
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.optimizer import PartwiseAdam, build_optimizer, learning_rate_factor

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_fraction=0.25, weight_decay=0.5)


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {
        "stack": nn.Parameter(torch.randn(3, 4, 2)),
        "weight": nn.Parameter(torch.randn(5)),
        "bias": nn.Parameter(torch.randn(5)),
    }


def build(named: dict[str, nn.Parameter], steps: int = 8) -> PartwiseAdam:
    return PartwiseAdam(named, {"stack": 3, "weight": 1, "bias": 1}, {"bias"}, CONFIG, steps)


def gradients(step: int) -> dict[str, Tensor]:
    """Return gradients with norms above and below 1; those of the stack's parts differ by a factor of 100."""
    torch.manual_seed(100 + step)
    tensors = {"stack": torch.randn(3, 4, 2), "weight": 0.1 * torch.randn(5), "bias": 3 * torch.randn(5)}
    tensors["stack"] *= torch.tensor([0.03, 3.0, 0.3])[:, None, None]
    return tensors


def take(optimizer: PartwiseAdam, named: dict[str, nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        for name, gradient in gradients(step).items():
            named[name].grad = gradient.clone()
        optimizer.step()


def by_hand(steps: int, total: int) -> dict[str, Tensor]:
    """Take the steps part by part and number by number, as docs/model.md defines them."""
    named = {name: parameter.detach().double() for name, parameter in parameters().items()}
    pieces = {f"stack{i}": named["stack"][i] for i in range(3)} | {"weight": named["weight"], "bias": named["bias"]}
    means = {name: torch.zeros_like(piece) for name, piece in pieces.items()}
    squares = {name: torch.zeros_like(piece) for name, piece in pieces.items()}
    for step in range(steps):
        step_gradients = gradients(step)
        rate = 0.1 * min(step / total / 0.25, (1 - step / total) / 0.75)
        for name, piece in pieces.items():
            gradient = (
                step_gradients["stack"][int(name[-1])] if name.startswith("stack") else step_gradients[name]
            ).double()
            gradient = gradient * min(1.0, 1 / float(gradient.norm()))
            means[name] = 0.9 * means[name] + 0.1 * gradient
            squares[name] = 0.999 * squares[name] + 0.001 * gradient**2
            piece -= rate * (means[name] / (squares[name].sqrt() + 1e-6) + (0.0 if name == "bias" else 0.5) * piece)
    return {name: value.float() for name, value in named.items()}


def test_steps_match_the_definition() -> None:
    named = parameters()
    take(build(named), named, 0, 6)
    for name, expected in by_hand(6, 8).items():
        torch.testing.assert_close(named[name].detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("step", "factor"), [(0, 0), (1, 0.1), (5, 0.5), (10, 1), (55, 0.5), (100, 0), (120, 0)])
def test_learning_rate_rises_over_the_warm_up_and_falls_to_zero(step: int, factor: float) -> None:
    assert learning_rate_factor(step, 100, 0.1) == pytest.approx(factor)


def test_without_warm_up_the_learning_rate_starts_at_its_peak() -> None:
    assert [learning_rate_factor(step, 4, 0.0) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_the_first_step_has_learning_rate_zero() -> None:
    named = parameters()
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer = build(named)
    take(optimizer, named, 0, 1)
    assert all(torch.equal(parameter, before[name]) for name, parameter in named.items())
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]
    take(optimizer, named, 1, 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 1 / 8 / 0.25)


def test_parts_are_clipped_independently() -> None:
    named = parameters()
    optimizer = build(named)
    take(optimizer, named, 0, 1)
    before = gradients(0)["stack"]
    clipped = optimizer.state[named["stack"]]["mean"] / 0.1
    assert before[0].norm() < 1 and torch.allclose(clipped[0], before[0])
    assert before[1].norm() > 1 and clipped[1].norm().item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(named["stack"].grad, before)  # type: ignore[arg-type]


def test_a_restored_optimizer_continues_as_if_uninterrupted(tmp_path: Any) -> None:
    straight = parameters()
    take(build(straight), straight, 0, 6)
    named = parameters()
    first = build(named)
    take(first, named, 0, 3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = build(named)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.param_groups[0]["step"] == 3
    take(second, named, 3, 6)
    assert all(torch.equal(parameter, straight[name]) for name, parameter in named.items())


def test_a_restored_optimizer_uses_the_restored_moments() -> None:
    named = parameters()
    optimizer = build(named)
    take(optimizer, named, 0, 2)
    weights = {name: parameter.detach().clone() for name, parameter in named.items()}
    saved = copy.deepcopy(optimizer.state_dict())
    take(optimizer, named, 2, 4)
    expected = {name: parameter.detach().clone() for name, parameter in named.items()}
    for name, parameter in named.items():
        parameter.detach().copy_(weights[name])
    optimizer.load_state_dict(saved)
    take(optimizer, named, 2, 4)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in named.items())
    assert all(set(moments) == {"mean", "square"} for moments in optimizer.state_dict()["state"].values())


def test_a_copy_takes_the_same_steps() -> None:
    named = parameters()
    optimizer = build(named)
    take(optimizer, named, 0, 2)
    twin_optimizer, twin = copy.deepcopy((optimizer, named))
    take(optimizer, named, 2, 4)
    take(twin_optimizer, twin, 2, 4)
    assert all(torch.equal(parameter, twin[name]) for name, parameter in named.items())


def test_parameters_without_a_gradient_do_not_change() -> None:
    named = parameters()
    optimizer = build(named)
    take(optimizer, named, 0, 1)
    before = named["weight"].detach().clone()
    named["weight"].grad = None
    optimizer.step()
    assert torch.equal(named["weight"], before)
    assert optimizer.param_groups[0]["step"] == 2
    take(optimizer, named, 2, 3)
    assert not torch.equal(named["weight"], before)


def test_every_parameter_of_the_model_is_in_one_group() -> None:
    config = ModelConfig(
        registers=2,
        diffusion_steps=2,
        hidden_size=8,
        heads=2,
        branches=2,
        dropout=0.0,
        input_dropout=0.0,
        fusion_temperature=0.5,
    )
    model = DreamPRVR(config, 6, 5)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3), 10)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(list(model.parameters())) and {id(parameter) for parameter in held} == {
        id(p) for p in model.parameters()
    }
    named = dict(model.named_parameters())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(
        math.isclose(decays[id(parameter)], 0.0 if name in model.undecayed() else 0.01)
        for name, parameter in named.items()
    )
