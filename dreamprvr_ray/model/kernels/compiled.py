"""Chains of elementwise operations between the branches' matrix products, which a GPU runs as a kernel or two each way.

Written in plain torch and compiled for CUDA: one by one, their operations would write and read the largest tensors of a step a dozen times.
They compute in float32 and return the type of the product before them. What varies from trial to trial, the probability of dropout,
arrives as a tensor, so that compiled kernels serve all trials of a machine (torch keeps them on disk).

N branches, R rows, D hidden size, B videos, L tokens, S keys, H heads. `keep` () is the probability that dropout keeps an entry.
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


@cache
def available() -> bool:
    """Whether this machine can compile for its GPU."""
    return bool(has_triton()) and any(map(shutil.which, ("cc", "gcc", "clang")))


def supports(x: Tensor) -> bool:
    """Whether these functions pay for a step that computes `x`: on a GPU, with gradients."""
    return x.is_cuda and torch.is_grad_enabled() and x.dtype != torch.float64 and available()


def normed_and_dropped(x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
    """drop(LN(x)): x (.., D) -> (R, D) in the type in which matrix products are computed."""
    rows = x.flatten(0, -2)
    torch._dynamo.maybe_mark_dynamic(rows, 0)
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return _compiled(_normed_and_dropped)(rows, weight, bias, keep, dtype).view(x.shape)  # type: ignore[no-any-return]


def added_and_normed(
    residual: Tensor, x: Tensor, bias: Tensor | None, weight: Tensor, shift: Tensor, keep: Tensor
) -> Tensor:
    """LN(residual + drop(x + bias)), weight and shift of each branch: residual (R, D) or (N, R, D), x (N, R, D), the others (N, D)."""
    torch._dynamo.maybe_mark_dynamic(residual, residual.ndim - 2)
    torch._dynamo.maybe_mark_dynamic(x, 1)
    return _compiled(_added_and_normed)(residual, x, bias, weight, shift, keep)  # type: ignore[no-any-return]


def rectified_and_dropped(x: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
    """drop(relu(x + bias)): x (N, R, F), bias (N, F)."""
    torch._dynamo.maybe_mark_dynamic(x, 1)
    return _compiled(_rectified_and_dropped)(x, bias, keep)  # type: ignore[no-any-return]


def dropped_probabilities(products: Tensor, factors: Tensor, key_mask: Tensor | None, keep: Tensor) -> Tensor:
    """drop(softmax(products * factors + key_mask)): products (B, N, H, L, S), factors (N, L, S), key_mask (B, S)."""
    torch._dynamo.maybe_mark_dynamic(products, 0)
    if key_mask is not None:
        torch._dynamo.maybe_mark_dynamic(key_mask, 0)
    return _compiled(_dropped_probabilities)(products, factors, key_mask, keep)  # type: ignore[no-any-return]


def weighted_sum(preferences: Tensor, outputs: Tensor) -> Tensor:
    """Branches by the softmax of preferences: preferences (N, B, L), outputs (N, B, L, D) -> (B, L, D) in float32."""
    preferences, flat = preferences.flatten(1), outputs.flatten(1, 2)
    torch._dynamo.maybe_mark_dynamic(preferences, 1)
    torch._dynamo.maybe_mark_dynamic(flat, 1)
    return _compiled(_weighted_sum)(preferences, flat).view(outputs.shape[1:])  # type: ignore[no-any-return]


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Any]:
    return torch.compile(function)


def _dropped(x: Tensor, keep: Tensor) -> Tensor:
    return torch.where(torch.rand_like(x) < keep, x / keep, 0.0)


def _normed_and_dropped(x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    return _dropped(F.layer_norm(x.float(), x.shape[-1:], weight, bias), keep).to(dtype)


def _added_and_normed(
    residual: Tensor, x: Tensor, bias: Tensor | None, weight: Tensor, shift: Tensor, keep: Tensor
) -> Tensor:
    added = x.float() if bias is None else x.float() + bias.unsqueeze(1)
    normed = F.layer_norm(residual.float() + _dropped(added, keep), x.shape[-1:])
    return (normed * weight.unsqueeze(1) + shift.unsqueeze(1)).to(x.dtype)


def _rectified_and_dropped(x: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
    return _dropped((x.float() + bias.unsqueeze(1)).relu(), keep).to(x.dtype)


def _dropped_probabilities(products: Tensor, factors: Tensor, key_mask: Tensor | None, keep: Tensor) -> Tensor:
    scores = products.float() * factors.unsqueeze(1)
    if key_mask is not None:
        scores = scores + key_mask[:, None, None, None, :]
    return _dropped(torch.softmax(scores, -1), keep).to(products.dtype)


def _weighted_sum(preferences: Tensor, outputs: Tensor) -> Tensor:
    return (torch.softmax(preferences, 0).unsqueeze(-1) * outputs.float()).sum(0)
