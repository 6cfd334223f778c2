"""The self-attention block on the CPU, forward and backward, branch by branch and head by head.

A GPU is fastest with all branches in one launch. A CPU is faster if the data it has just written is still in its
caches, and it has less memory bandwidth: only the branches' outputs, and what the backward pass cannot recompute
cheaply, exist for all branches at once.

Values and gradients are those of `attention.SelfAttention`.

Shapes: B videos or queries, L tokens, K registers, S = L + K keys, N branches, H heads, d = D / H, D hidden size, F
feed-forward size, R = B * L rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamprvr_ray.model.kernels.dropout_mask import KEEP_ALL, DropoutMask, keep_above
from dreamprvr_ray.model.kernels.threads import run_parts

WEIGHTS = 12  # query, key_value, attention_norm, widen, narrow and output_norm have a weight and a bias each


@dataclass(frozen=True)
class BlockSettings:
    """What an attention block's computation depends on besides its tensors."""

    heads: int
    keep: int  # dropout keeps an entry with probability keep / 65536
    gradients: bool  # whether a backward pass may follow
    dtype: torch.dtype  # of matrix products

    @property
    def scale(self) -> float:
        """The factor by which dropout scales the entries that it keeps. It is folded into weights and factors."""
        return KEEP_ALL / self.keep

    def draw_mask(self) -> DropoutMask:
        """Draw a mask from torch's global generator."""
        return DropoutMask.draw(self.keep)


class AttentionBlock(torch.autograd.Function):
    """N attention blocks over the same tokens, dropout included."""

    @staticmethod
    def forward(
        context: Any,
        settings: BlockSettings,
        tokens: Tensor,
        registers: Tensor | None,
        factors: Tensor | None,
        key_mask: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        """Arguments as of `SelfAttention.forward`, then the 12 weights (see `WEIGHTS`) -> (N, B, L, D)."""
        (
            query_w,
            query_b,
            key_value_w,
            key_value_b,
            norm1_w,
            norm1_b,
            widen_w,
            widen_b,
            narrow_w,
            narrow_b,
            norm2_w,
            norm2_b,
        ) = weights
        (_, length, size), branches, dtype = tokens.shape, len(query_w), settings.dtype
        sources = tokens if registers is None else torch.cat([tokens, registers.to(tokens.dtype)], 1)
        rows, source_rows = tokens.flatten(0, 1), sources.flatten(0, 1).to(dtype)
        # Several branches' outputs are multiplied next: they have the type of those products already.
        outputs = rows.new_empty(branches, *tokens.shape, dtype=dtype if branches > 1 else None)
        # All masks are drawn before any thread starts, so that the order of the draws is fixed.
        masks = [[settings.draw_mask() for _ in range(settings.heads + 3)] for _ in range(branches)]

        def run_branch(_: int, n: int) -> list[Tensor]:
            weight = torch.cat([query_w[n], key_value_w[n], key_value_w[branches + n]]).to(dtype)
            bias = torch.cat([query_b[n], key_value_b[n], key_value_b[branches + n]]).to(dtype)
            projected = torch.addmm(bias, source_rows, weight.T).view(*sources.shape[:2], 3, size)
            query, key, value = _query_key_value(projected, length)
            attended = rows.new_empty(tokens.shape, dtype=dtype)
            *head_masks, attended_mask, inner_mask, fed_mask = masks[n]
            probabilities = []
            for columns, mask in zip(_head_columns(size, settings.heads), head_masks, strict=True):
                scores = query[..., columns] @ key[..., columns].transpose(1, 2)
                scores.mul_(_branch_factors(factors, n, size // settings.heads))
                if key_mask is not None:
                    scores.add_(key_mask.unsqueeze(1))
                head_probabilities = torch.softmax(scores, -1, dtype=_at_least_float32(dtype)).to(dtype)
                if settings.gradients:
                    probabilities.append(head_probabilities)
                    head_probabilities = head_probabilities.clone()
                attended[..., columns] = mask.drop_(head_probabilities) @ value[..., columns]
            del scores, head_probabilities
            # From here on dropout's scales are folded in: that of the probabilities and that of the attended rows ...
            added = torch.add(rows, attended_mask.drop_(attended).view_as(rows), alpha=settings.scale**2)
            x, mean1, deviation1 = torch.native_layer_norm(added, (size,), norm1_w[n], norm1_b[n], 1e-5)
            inner = torch.addmm(widen_b[n].to(dtype), x.to(dtype), widen_w[n].to(dtype).T).relu_()
            inner_mask.drop_(inner)
            # ... and those of the feed-forward network's inner and output entries.
            fed = torch.addmm(narrow_b[n].to(dtype), inner, narrow_w[n].to(dtype).T, alpha=settings.scale)
            summed = torch.add(x, fed_mask.drop_(fed), alpha=settings.scale)
            normed, mean2, deviation2 = torch.native_layer_norm(summed, (size,), norm2_w[n], norm2_b[n], 1e-5)
            outputs[n] = normed.view_as(tokens)
            if not settings.gradients:
                return []
            return [projected, *probabilities, added, mean1, deviation1, inner, summed, mean2, deviation2]

        saved = [tensor for tensors in run_parts(run_branch, branches) for tensor in tensors]
        context.settings, context.masks = settings, masks
        context.save_for_backward(tokens, registers, factors, *weights, *saved)
        return outputs

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        settings: BlockSettings = context.settings
        tokens, registers, factors, *tensors = context.saved_tensors
        weights, saved = tensors[:WEIGHTS], tensors[WEIGHTS:]
        query_w, _, key_value_w, _, norm1_w, norm1_b, widen_w, _, narrow_w, _, norm2_w, norm2_b = weights
        (videos, length, size), branches, dtype = tokens.shape, len(query_w), settings.dtype
        saved_per_branch, scale = settings.heads + 8, settings.scale
        sources = tokens if registers is None else torch.cat([tokens, registers.to(tokens.dtype)], 1)
        source_rows = sources.flatten(0, 1).to(dtype)
        # By thread: the gradients of the tokens' rows through the residual, and of all rows through queries, keys and
        # values.
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        d_weights = [torch.empty_like(weight) for weight in weights]
        (
            d_query_w,
            d_query_b,
            d_key_value_w,
            d_key_value_b,
            d_norm1_w,
            d_norm1_b,
            d_widen_w,
            d_widen_b,
            d_narrow_w,
            d_narrow_b,
            d_norm2_w,
            d_norm2_b,
        ) = d_weights

        def run_branch(thread: int, number: int) -> None:
            n = (
                branches - 1 - number
            )  # the last branch first: its saved tensors were written last and may still be cached
            if thread not in sums:
                sums[thread] = torch.zeros_like(tokens).flatten(0, 1), torch.zeros_like(sources).flatten(0, 1)
            d_rows, d_source_rows = sums[thread]
            projected, *rest = saved[n * saved_per_branch : (n + 1) * saved_per_branch]
            probabilities = rest[: settings.heads]
            added, mean1, deviation1, inner, summed, mean2, deviation2 = rest[settings.heads :]
            query, key, value = _query_key_value(projected, length)
            *head_masks, attended_mask, _, fed_mask = context.masks[n]
            d_output = gradient[n].flatten(0, 1).to(tokens.dtype).contiguous()
            d_summed, d_norm2_w[n], d_norm2_b[n] = _norm_backward(
                d_output, summed, mean2, deviation2, norm2_w[n], norm2_b[n]
            )
            d_fed = fed_mask.drop_(d_summed.to(dtype, copy=True)).mul_(scale)
            d_narrow_b[n] = d_fed.sum(0)
            write_product(d_narrow_w[n], d_fed.T, inner).mul_(scale)
            # Where `inner` is zero it was negative or dropped.
            d_inner = d_fed @ (narrow_w[n] * scale).to(dtype)
            keep_above(d_inner, inner, 0, grad_input=d_inner)
            x = torch.native_layer_norm(added, (size,), norm1_w[n], norm1_b[n], 1e-5)[0].to(dtype)
            d_widen_b[n] = d_inner.sum(0)
            write_product(d_widen_w[n], d_inner.T, x)
            d_x = _add_product_(d_summed, d_inner, widen_w[n])
            del d_fed, d_inner, x
            d_added, d_norm1_w[n], d_norm1_b[n] = _norm_backward(d_x, added, mean1, deviation1, norm1_w[n], norm1_b[n])
            d_rows += d_added
            d_attended = attended_mask.drop_(d_added.to(dtype, copy=True)).mul_(scale**2).view(videos, length, size)
            d_projected = torch.empty_like(projected)
            d_query, d_key, d_value = _query_key_value(d_projected, length)
            d_projected[:, length:, 0] = 0  # registers have no queries
            for columns, head_probabilities, mask in zip(
                _head_columns(size, settings.heads), probabilities, head_masks, strict=True
            ):
                d_out = d_attended[..., columns]
                d_value[..., columns] = mask.drop_(head_probabilities.clone()).transpose(1, 2) @ d_out
                d_scores = mask.drop_(d_out @ value[..., columns].transpose(1, 2))
                precise = _at_least_float32(dtype)
                d_scores = torch._softmax_backward_data(
                    d_scores.to(precise), head_probabilities.to(precise), -1, precise
                )
                d_scores = d_scores.mul_(_branch_factors(factors, n, size // settings.heads)).to(dtype)
                d_query[..., columns] = d_scores @ key[..., columns]
                d_key[..., columns] = d_scores.transpose(1, 2) @ query[..., columns]
            d_projected_rows = d_projected.view(-1, 3 * size)
            weight = torch.cat([query_w[n], key_value_w[n], key_value_w[branches + n]])
            d_bias, d_weight = d_projected_rows.sum(0).split(size), (d_projected_rows.T @ source_rows).split(size)
            d_query_b[n], d_key_value_b[n], d_key_value_b[branches + n] = d_bias
            d_query_w[n], d_key_value_w[n], d_key_value_w[branches + n] = d_weight
            _add_product_(d_source_rows, d_projected_rows, weight)

        run_parts(run_branch, branches)
        d_rows, d_source_rows = sums[0]
        for thread in range(1, len(sums)):
            d_rows += sums[thread][0]
            d_source_rows += sums[thread][1]
        d_sources = d_source_rows.view_as(sources)
        d_registers = None if registers is None else d_sources[:, length:].to(registers.dtype)
        return None, d_rows.view_as(tokens) + d_sources[:, :length], d_registers, None, None, *d_weights


def write_product(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Write left @ right, computed in their dtype, into `out`, and return it."""
    return torch.mm(left, right, out=out) if out.dtype == left.dtype else out.copy_(left @ right)


def _add_product_(out: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Add rows @ weight, computed in the type of `rows`, to `out`, and return it."""
    if out.dtype == rows.dtype:
        return torch.addmm(out, rows, weight, out=out)
    return out.add_(rows @ weight.to(rows.dtype))


def _query_key_value(projected: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of (B, S, 3, D): the tokens' queries (B, L, D), all keys and all values (B, S, D)."""
    return projected[:, :length, 0], projected[:, :, 1], projected[:, :, 2]


def _head_columns(size: int, heads: int) -> list[slice]:
    return [slice(start, start + size // heads) for start in range(0, size, size // heads)]


def _branch_factors(factors: Tensor | None, branch: int, head_size: int) -> Tensor | float:
    return 1 / math.sqrt(head_size) if factors is None else factors[branch]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a LayerNorm's input, weight and bias."""
    # Torch's kernel sums the bias's gradient row after row, which has ten times the rounding error of `sum`.
    d_x, d_weight, _ = torch.ops.aten.native_layer_norm_backward(
        gradient, x, (x.shape[-1],), mean, deviation, weight, bias, (True, True, False)
    )
    return d_x, d_weight, gradient.sum(0)
