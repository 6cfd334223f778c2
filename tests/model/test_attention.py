"""Each part of the attention blocks against its definition in docs/model.md."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support import reference_model
from torch import Tensor, nn

from dreamprvr_ray.config_sections import ModelConfig
from dreamprvr_ray.model.attention import (
    CrossAttention,
    Dropout,
    SelfAttention,
    StackedLayerNorm,
    StackedLinear,
    additive_mask,
    gaussian_factors,
)
from dreamprvr_ray.model.kernels.dropout_mask import KEEP_ALL

CONFIG = ModelConfig(
    registers=0, diffusion_steps=1, hidden_size=8, heads=2, dropout=0.0, input_dropout=0.0, fusion_temperature=1.0
)


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return module


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.31, 0.9])
def test_dropout_drops_at_its_rate_and_preserves_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1_000_000)
    dropped = Dropout(probability)(x)
    deviation = math.sqrt(probability * (1 - probability) / x.numel())
    assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=4 * deviation)
    kept = round((1 - probability) * KEEP_ALL) / KEEP_ALL
    assert dropped[dropped != 0].unique().tolist() == [pytest.approx(1 / kept, rel=1e-6)]
    assert dropped.mean().item() == pytest.approx(1, abs=4 * deviation / kept)


def test_dropout_depends_only_on_the_seed() -> None:
    dropout, x = Dropout(0.3), torch.randn(7, 11)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(x)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    torch.manual_seed(1)
    assert not torch.equal(dropout(x), dropout(x))


def test_dropout_treats_all_positions_alike() -> None:
    """Four entries share a 64-bit draw. All must be kept at the same rate and independently of each other."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(100_000, 8)) != 0).float()
    torch.testing.assert_close(kept.mean(0), torch.full((8,), 0.5), atol=0.01, rtol=0)
    centred = kept - 0.5
    torch.testing.assert_close(centred.T @ centred / len(kept), 0.25 * torch.eye(8), atol=0.005, rtol=0)


def test_dropout_passes_gradients_exactly_where_it_passed_values() -> None:
    x = torch.ones(5, 3, 13, requires_grad=True)
    dropped = Dropout(0.4)(x)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())


def test_dropout_returns_its_input_in_evaluation_mode_and_at_rate_zero() -> None:
    x = torch.randn(3, 4)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.5)(torch.empty(0, 3)).shape == (0, 3)
    assert Dropout(0.5)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("length", [32, 128])
def test_gaussian_factors_are_as_specified(length: int) -> None:
    factors = gaussian_factors(8, length, 3, head_size=16)
    assert factors.shape == (8, length, length + 3)
    torch.testing.assert_close(factors[0], torch.full((length, length + 3), 0.25))
    torch.testing.assert_close(factors[:, :, length:], torch.full((8, length, 3), 0.25))
    for branch, width in enumerate([0.25, 0.5, 1, 2, 4, 8, 16], start=1):
        torch.testing.assert_close(factors[branch, :, :length], reference_model.gaussian(width, length).float() / 4)


def test_stacked_layers_equal_single_layers() -> None:
    linear, norm = randomised(StackedLinear(3, 5, 4)), randomised(StackedLayerNorm(3, 5))
    x = torch.randn(3, 7, 5)
    for part in range(3):
        torch.testing.assert_close(linear(x)[part], F.linear(x[part], linear.weight[part], linear.bias[part]))
        torch.testing.assert_close(
            linear.on_shared_rows(x[0])[:, 4 * part : 4 * part + 4],
            F.linear(x[0], linear.weight[part], linear.bias[part]),
        )
        torch.testing.assert_close(norm(x)[part], F.layer_norm(x[part], (5,), norm.weight[part], norm.bias[part]))


def test_masked_tokens_have_no_influence_and_registers_do() -> None:
    attention = randomised(SelfAttention(2, 8, 2, dropout=0.0))
    tokens, registers = torch.randn(1, 4, 8), torch.randn(1, 2, 8)
    mask = additive_mask(torch.tensor([[True, True, False, True, True, True]]))
    factors = gaussian_factors(2, 4, 2, 4)
    outputs = attention(tokens, registers, factors, mask)
    assert outputs.shape == (2, 1, 4, 8)
    changed = tokens.clone()
    changed[0, 2] += 1
    others = [0, 1, 3]
    torch.testing.assert_close(attention(changed, registers, factors, mask)[:, :, others], outputs[:, :, others])
    assert not torch.allclose(attention(tokens, registers + 1, factors, mask), outputs)


def test_cross_attention_equals_the_reference_that_projects_the_tokens() -> None:
    """Values and gradients, with a mask: applying the projections on the side of the queries is exact."""
    block = randomised(CrossAttention(8, 2, dropout=0.0)).double()
    mask = torch.tensor([[True, True, True], [True, False, True]])
    torch.manual_seed(1)
    queries, tokens = torch.randn(2, 4, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    parts = {"norm1": "attention_norm", "output.layer1": "widen", "output.layer2": "narrow", "norm2": "output_norm"}
    weights = {
        f"self.{name}.{kind}": getattr(getattr(block, name), kind)
        for name in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    for theirs, ours in parts.items():
        weights |= {
            f"{theirs}.{kind}": getattr(getattr(block.feed_forward, ours), kind)[0] for kind in ("weight", "bias")
        }
    weights = {f"block.{name}": weight for name, weight in weights.items()}
    reference = reference_model.attention_block(
        weights, "block", CONFIG, queries, tokens, None, mask[:, None, :].expand(-1, 4, -1)
    )
    outputs = block(queries, tokens, additive_mask(mask).double())
    torch.testing.assert_close(outputs, reference)
    direction = torch.randn_like(reference)
    gradients = [torch.autograd.grad((out * direction).sum(), list(block.parameters())) for out in (outputs, reference)]
    for (name, _), one, other in zip(block.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, name=name: f"{name}: {m}")


def test_dropout_preserves_the_mean_of_cross_attention() -> None:
    """Probabilities after dropout do not sum to 1, and the value's bias must be scaled by their sum."""
    block = randomised(CrossAttention(4, 1, dropout=0.5))
    block.feed_forward = _ReturnAttended()
    queries, tokens = torch.randn(1, 1, 4), torch.randn(1, 3, 4)
    torch.manual_seed(0)
    many = block(queries.expand(40_000, 1, 4), tokens.expand(40_000, 3, 4), None)
    without_dropout = block.eval()(queries, tokens, None)
    torch.testing.assert_close(many.mean(0, keepdim=True), without_dropout, atol=0.03, rtol=0)
    # Where all three probabilities of a query are dropped (one in eight), the output is zero: without the bias too.
    assert (many == 0).all(-1).float().mean().item() == pytest.approx(1 / 8, abs=0.01)


class _ReturnAttended(nn.Module):
    """Replaces the feed-forward part, so that a block returns the attended rows."""

    def forward(self, residual: Tensor, attended: Tensor) -> Tensor:
        return attended[0]
