"""Fast implementations for training on a GPU: compiled chains of the operations between matrix products.

Each chain becomes a kernel or two, forward and backward. Launched one by one, its operations would write and read the
largest tensors of a step a dozen times. Chains compute in float32 and return the type of the product before them. The
probability of dropout, which varies from trial to trial, is a tensor, so that the kernels compiled once serve all
trials of a machine (torch caches them on disk).

Every operation takes the plain method first, then that method's own arguments. The chains below the operations are
plain torch.

Shapes: B videos, L tokens, S keys, N branches, H heads, d = D / H, D hidden size, I input features, R rows, F
feed-forward size. `keep` () is the probability that dropout keeps an entry.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._triton import has_triton

from dreamprvr_ray.model.kernels.modules import FusionBlock, InputLayer, PostNormFeedForward, SelfAttention


@cache
def available() -> bool:
    """Return whether this machine can compile for its GPU, which requires Triton and a C compiler."""
    return bool(has_triton()) and any(map(shutil.which, ("cc", "gcc", "clang")))


def supports(x: Tensor) -> bool:
    """Return whether compiled chains speed up a step that computes `x`: on a GPU, with gradients, not in float64."""
    return x.is_cuda and torch.is_grad_enabled() and x.dtype != torch.float64 and available()


@cache
def compile_chain(chain: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return `chain` compiled. Torch compiles it on its first call."""
    return torch.compile(chain)


def input_layer(plain: Callable[..., Tensor], layer: InputLayer, x: Tensor) -> Tensor:
    """LayerNorm and dropout as one chain, then Linear and ReLU: (..., I) -> (..., D)."""
    rows = x.flatten(0, -2)
    torch._dynamo.maybe_mark_dynamic(rows, 0)
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    dropped = compile_chain(normalise_and_drop)(rows, layer.norm.weight, layer.norm.bias, layer.dropout.keep, dtype)
    projected: Tensor = layer.project(dropped.view(x.shape))
    return projected.relu_()


def attention_probabilities(
    plain: Callable[..., Tensor],
    block: SelfAttention,
    query: Tensor,
    key: Tensor,
    factors: Tensor | None,
    key_mask: Tensor | None,
) -> Tensor:
    """Scaling, mask, softmax and dropout of the scores as one chain.

    query (B, L, N, H, d), key (B, S, N, H, d) -> (B, N, H, L, S).
    """
    if factors is None:
        return plain(block, query, key, factors, key_mask)
    # The keys are copied as they lie and then transposed: transposing first makes the copy take twice as long.
    scores = query.permute(0, 2, 3, 1, 4) @ key.permute(0, 2, 3, 1, 4).contiguous().transpose(3, 4)
    torch._dynamo.maybe_mark_dynamic(scores, 0)
    if key_mask is not None:
        torch._dynamo.maybe_mark_dynamic(key_mask, 0)
    probabilities: Tensor = compile_chain(softmax_and_drop)(scores, factors, key_mask, block.dropout.keep)
    return probabilities


def feed_forward(
    plain: Callable[..., Tensor], layer: PostNormFeedForward, residual: Tensor, attended: Tensor
) -> Tensor:
    """One chain before, between and after the two products.

    residual (R, D) or (N, R, D), attended (N, R, D) -> (N, R, D).
    """
    if len(attended) == 1:
        return plain(layer, residual, attended)
    keep = layer.dropout.keep
    x = _add_and_normalise(residual, attended, None, layer.attention_norm.weight, layer.attention_norm.bias, keep)
    inner = x @ layer.widen.weight.transpose(1, 2)
    torch._dynamo.maybe_mark_dynamic(inner, 1)
    inner = compile_chain(rectify_and_drop)(inner, layer.widen.bias, keep)
    fed = inner @ layer.narrow.weight.transpose(1, 2)
    return _add_and_normalise(x, fed, layer.narrow.bias, layer.output_norm.weight, layer.output_norm.bias, keep)


def weighted_sum(plain: Callable[..., Tensor], block: FusionBlock, outputs: Tensor, preferences: Tensor) -> Tensor:
    """Softmax over branches and weighted sum as one chain.

    outputs (N, B, L, D), preferences (N, B, L) -> (B, L, D) in float32.
    """
    scaled, rows = (preferences / block.temperature).flatten(1), outputs.flatten(1, 2)
    torch._dynamo.maybe_mark_dynamic(scaled, 1)
    torch._dynamo.maybe_mark_dynamic(rows, 1)
    summed: Tensor = compile_chain(sum_by_softmax)(scaled, rows)
    return summed.view(outputs.shape[1:])


def _add_and_normalise(
    residual: Tensor, x: Tensor, bias: Tensor | None, weight: Tensor, shift: Tensor, keep: Tensor
) -> Tensor:
    torch._dynamo.maybe_mark_dynamic(residual, residual.ndim - 2)
    torch._dynamo.maybe_mark_dynamic(x, 1)
    return compile_chain(add_and_normalise)(residual, x, bias, weight, shift, keep)  # type: ignore[no-any-return]


def normalise_and_drop(x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return drop(LN(x)) in `dtype`, that of the product which follows: x (R, I)."""
    return _drop(F.layer_norm(x.float(), x.shape[-1:], weight, bias), keep).to(dtype)


def add_and_normalise(
    residual: Tensor, x: Tensor, bias: Tensor | None, weight: Tensor, shift: Tensor, keep: Tensor
) -> Tensor:
    """Return each branch's LN(residual + drop(x + bias)).

    residual (R, D) or (N, R, D), x (N, R, D); bias or None, weight and shift (N, D).
    """
    added = x.float() if bias is None else x.float() + bias.unsqueeze(1)
    normed = F.layer_norm(residual.float() + _drop(added, keep), x.shape[-1:])
    return (normed * weight.unsqueeze(1) + shift.unsqueeze(1)).to(x.dtype)


def rectify_and_drop(x: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
    """Return drop(relu(x + bias)): x (N, R, F), bias (N, F)."""
    return _drop((x.float() + bias.unsqueeze(1)).relu(), keep).to(x.dtype)


def softmax_and_drop(products: Tensor, factors: Tensor, key_mask: Tensor | None, keep: Tensor) -> Tensor:
    """Return drop(softmax(products * factors + key_mask)).

    products (B, N, H, L, S), factors (N, L, S), key_mask (B, S) or None.
    """
    scores = products.float() * factors.unsqueeze(1)
    if key_mask is not None:
        scores = scores + key_mask[:, None, None, None, :]
    return _drop(torch.softmax(scores, -1), keep).to(products.dtype)


def sum_by_softmax(preferences: Tensor, outputs: Tensor) -> Tensor:
    """Return the sum over branches, weighted by softmax(preferences): (N, R), (N, R, D) -> (R, D) in float32."""
    return (torch.softmax(preferences, 0).unsqueeze(-1) * outputs.float()).sum(0)


def _drop(x: Tensor, keep: Tensor) -> Tensor:
    return torch.where(torch.rand_like(x) < keep, x / keep, 0.0)
