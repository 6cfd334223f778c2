"""The CPU's fast implementations: dropout, the input layer, the self-attention block, query encoding and zero padding.

They save memory traffic. Dropout masks are stored as seeds (`dropout_mask`), intermediate rows are computed again in
the backward pass, and attention blocks run branch by branch (`attention_block`).

Every operation takes the plain method first, then that method's own arguments.

Shapes: B videos or queries, Q queries, L tokens, S keys (tokens and registers), N branches, D hidden size, I input
features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dreamprvr_ray.model.kernels.attention_block import AttentionBlock, BlockSettings, write_product
from dreamprvr_ray.model.kernels.dropout_mask import KEEP_ALL, DropoutMask, keep_above, keep_count
from dreamprvr_ray.model.kernels.modules import Dropout, InputLayer, SelfAttention

QUERY_GROUPS = 4  # a batch's queries are encoded in this many groups of similar lengths


def supports(x: Tensor) -> bool:
    """Return whether `x` is a real tensor on the CPU. Fake tensors (`training/cost.py`) take the plain methods."""
    return x.device.type == "cpu" and type(x) is Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the type of matrix products with `x`: that of autocast where it is enabled, else that of `x`."""
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def dropout(plain: Callable[..., Tensor], layer: Dropout, x: Tensor) -> Tensor:
    """Drop entries of `x`, of any shape, by 16 random bits each, where torch would draw one float each."""
    keep = _keep(layer)
    if keep == KEEP_ALL:
        return x
    dropped: Tensor = _Dropout.apply(x, keep)
    return dropped


def input_layer(plain: Callable[..., Tensor], layer: InputLayer, x: Tensor) -> Tensor:
    """LayerNorm, dropout, Linear, ReLU: (..., I) -> (..., D)."""
    tensors = layer.norm.weight, layer.norm.bias, layer.project.weight, layer.project.bias
    projected: Tensor = _InputLayer.apply(x, product_dtype(x), _keep(layer.dropout), *tensors)
    return projected


def self_attention(
    plain: Callable[..., Tensor],
    block: SelfAttention,
    tokens: Tensor,
    registers: Tensor | None,
    factors: Tensor | None,
    key_mask: Tensor | None,
) -> Tensor:
    """The whole attention block, branch by branch: tokens (B, L, D) -> (N, B, L, D)."""
    ffn = block.feed_forward
    parts = (block.query, block.key_value, ffn.attention_norm, ffn.widen, ffn.narrow, ffn.output_norm)
    weights = [tensor for part in parts for tensor in (part.weight, part.bias)]
    settings = BlockSettings(block.heads, _keep(block.dropout), torch.is_grad_enabled(), product_dtype(tokens))
    outputs: Tensor = AttentionBlock.apply(settings, tokens, registers, factors, key_mask, *weights)
    return outputs


def encode_queries_by_length(plain: Callable[..., Tensor], model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Encode queries of similar lengths together, without the padding that they share.

    About half of a batch's token rows are padding. tokens (Q, L, I), mask (Q, L) bool -> (Q, D).
    """
    if len(tokens) < 2 * QUERY_GROUPS:
        return plain(model, tokens, mask)
    lengths, order = mask.sum(1).sort()
    longest = [int(group[-1]) for group in lengths.chunk(QUERY_GROUPS)]
    encoded = [
        plain(model, tokens[group, :length], mask[group, :length])
        for group, length in zip(order.chunk(QUERY_GROUPS), longest, strict=True)
    ]
    return torch.cat(encoded)[order.argsort()]


def zero_padding(plain: Callable[..., Tensor], model: nn.Module, frames: Tensor, mask: Tensor) -> Tensor:
    """Return `frames` itself if its padding is zero already, which saves a copy of all features."""
    # Not on a GPU: the host would have to wait for the result of the check.
    return plain(model, frames, mask) if frames[~mask].any() else frames


def _keep(layer: Dropout) -> int:
    return keep_count(layer.probability) if layer.training else KEEP_ALL


class _Dropout(torch.autograd.Function):
    """Dropout that keeps an entry with probability `keep` / 65536 and scales by the inverse of exactly that."""

    @staticmethod
    def forward(context: Any, x: Tensor, keep: int) -> Tensor:
        context.mask = DropoutMask.draw(keep)
        return context.mask.drop_(x.contiguous() * (KEEP_ALL / keep))  # type: ignore[no-any-return]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return context.mask.drop_(gradient.contiguous() * (KEEP_ALL / context.mask.keep)), None


class _InputLayer(torch.autograd.Function):
    """LayerNorm, dropout, Linear, ReLU. Stores none of the rows in between."""

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        dtype: torch.dtype,
        keep: int,
        norm_w: Tensor,
        norm_b: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """x (..., I), weight (D, I), products computed in `dtype` -> (..., D)."""
        context.mask, context.keep = DropoutMask.draw(keep), keep
        normed, mean, deviation = torch.native_layer_norm(x.flatten(0, -2), (x.shape[-1],), norm_w, norm_b, 1e-5)
        rows = context.mask.drop_(normed.to(dtype))
        projected = torch.addmm(bias.to(dtype), rows, weight.to(dtype).T, alpha=KEEP_ALL / keep).relu_()
        context.save_for_backward(x, mean, deviation, projected, norm_w, norm_b, weight)
        return projected.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, mean, deviation, projected, norm_w, norm_b, weight = context.saved_tensors
        dtype, scale, size = projected.dtype, KEEP_ALL / context.keep, (x.shape[-1],)
        d_projected = gradient.flatten(0, -2).to(dtype) * scale
        keep_above(d_projected, projected, 0, grad_input=d_projected)
        rows = context.mask.drop_(torch.native_layer_norm(x.flatten(0, -2), size, norm_w, norm_b, 1e-5)[0].to(dtype))
        d_weight = write_product(torch.empty_like(weight), d_projected.T, rows)
        d_normed = context.mask.drop_(d_projected @ weight.to(dtype)).to(norm_w.dtype)
        needed = (context.needs_input_grad[0], True, False)
        d_x, d_norm_w, _ = torch.ops.aten.native_layer_norm_backward(
            d_normed, x.flatten(0, -2).to(norm_w.dtype), size, mean, deviation, norm_w, norm_b, needed
        )
        d_x = d_x.view_as(x).to(x.dtype) if needed[0] else None
        return d_x, None, None, d_norm_w, d_normed.sum(0), d_weight, d_projected.sum(0).to(weight.dtype) / scale
