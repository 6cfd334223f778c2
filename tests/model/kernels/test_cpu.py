"""The CPU's implementations: same values and gradients as the plain methods; correct gradients under dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dreamprvr_ray.model.attention import SelfAttention, additive_mask, gaussian_factors
from dreamprvr_ray.model.dreamprvr import InputLayer
from dreamprvr_ray.model.kernels import cpu
from dreamprvr_ray.model.kernels.dropout_mask import KEEP_ALL, DropoutMask


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return module


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    tokens, registers = (
        torch.randn(2, 5, 8, dtype=dtype, requires_grad=True),
        torch.randn(2, 3, 8, dtype=dtype, requires_grad=True),
    )
    mask = torch.arange(8) < torch.tensor([[8], [4]])
    return tokens, registers, gaussian_factors(3, 5, 3, 4).to(dtype), additive_mask(mask).to(dtype)


@pytest.mark.parametrize("registers", [True, False])
def test_values_and_gradients_equal_those_of_the_plain_block(registers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    block = randomised(SelfAttention(3, 8, 2, dropout=0.0)).double()
    tokens, learned, factors, mask = inputs()
    arguments = (tokens, learned, factors, mask) if registers else (tokens, None, factors[:, :, :5], mask[:, :5])
    inputs_with_gradient = [tensor for tensor in arguments[:2] if tensor is not None]
    results = []
    for supports in (True, False):
        monkeypatch.setattr(cpu, "supports", lambda x, supports=supports: supports)
        out = block(*arguments)
        torch.manual_seed(2)
        loss = (out * torch.randn_like(out)).sum()
        results.append((out, *torch.autograd.grad(loss, [*block.parameters(), *inputs_with_gradient])))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_gradients_under_dropout_match_finite_differences() -> None:
    block = randomised(SelfAttention(2, 8, 2, dropout=0.3)).double()
    tokens, registers, factors, mask = inputs()

    def run(tokens: Tensor, registers: Tensor, *weights: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same masks every time
        named = dict(zip(dict(block.named_parameters()), weights, strict=True))
        out: Tensor = torch.func.functional_call(block, named, (tokens, registers, factors[:2], mask))
        return out

    weights = [parameter.detach().clone().requires_grad_() for parameter in block.parameters()]
    assert torch.autograd.gradcheck(run, (tokens, registers, *weights), fast_mode=True)
    with pytest.raises(AssertionError):  # dropout does change the result
        torch.testing.assert_close(run(tokens, registers, *weights), block.eval()(tokens, registers, factors[:2], mask))


def test_gradients_of_an_input_layer_under_dropout_match_finite_differences() -> None:
    layer = randomised(InputLayer(6, 4, dropout=0.3)).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        torch.manual_seed(3)
        out: Tensor = torch.func.functional_call(
            layer, dict(zip(dict(layer.named_parameters()), weights, strict=True)), (x,)
        )
        return out

    weights = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *weights))
    without_dropout = layer.project(layer.norm(x)).relu()
    torch.testing.assert_close(layer.eval()(x), without_dropout)


def test_dropout_has_the_same_distribution_as_in_the_plain_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many draws, outputs have the mean and deviation of the plain block, which uses torch's dropout."""
    block = randomised(SelfAttention(2, 8, 2, dropout=0.3))
    tokens, registers, factors, _ = inputs(torch.float32)
    many = [tensor[:1].detach().expand(20_000, *tensor.shape[1:]) for tensor in (tokens, registers)]
    results = []
    for supports in (True, False):
        monkeypatch.setattr(cpu, "supports", lambda x, supports=supports: supports)
        out = block(*many, factors[:2], None)
        results.append((out.mean(1), out.std(1)))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=0.03, rtol=0.02)


def test_a_mask_is_determined_by_its_seed() -> None:
    mask, x = DropoutMask(40000, seed=5), torch.randn(3, 7)
    assert torch.equal(mask.drop_(x.clone()), mask.drop_(x.clone()))
    assert not torch.equal(mask.drop_(x.clone()), DropoutMask(40000, seed=6).drop_(x.clone()))
    torch.manual_seed(1)
    assert DropoutMask.draw(40000).seed != DropoutMask.draw(40000).seed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 7, 1_000_000])
def test_masks_keep_the_given_fraction_in_every_type(dtype: torch.dtype, count: int) -> None:
    x = DropoutMask(round(0.7 * KEEP_ALL), seed=2).drop_(torch.ones(count, dtype=dtype))
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    if count > 1000:
        halves = (
            x.float().view(2, -1).mean(1)
        )  # in float32, the upper and lower halves of the random numbers decide one half each
        torch.testing.assert_close(halves, torch.full((2,), 0.7), atol=0.003, rtol=0)


def test_bf16_is_close_to_fp32() -> None:
    block = randomised(SelfAttention(3, 8, 2, dropout=0.0))
    tokens, registers, factors, mask = inputs(torch.float32)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = block(tokens, registers, factors, mask)
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        out = out.float()
        gradients.append(
            torch.autograd.grad(
                out.square().sum() + (out * tokens.detach()).sum(), [tokens, registers, *block.parameters()]
            )
        )
    largest = max(float(gradient.norm()) for gradient in gradients[0])
    for exact, rounded in zip(*gradients, strict=True):
        assert rounded.dtype == exact.dtype
        assert (rounded - exact).norm() <= 0.1 * exact.norm() + 1e-3 * largest
