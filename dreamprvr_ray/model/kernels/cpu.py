"""What the model computes on the CPU, with backward passes of their own: attention blocks branch by branch and head by head.

A GPU wants all branches in one launch. A CPU wants what it has just written to be in its caches still, and little memory: here nothing of
all branches is ever held but their outputs and what the backward pass cannot do without, and dropout's masks are kept as their seeds.

Values and gradients are those of the modules in `attention`. B videos, L tokens, S keys (tokens and registers), N branches, H heads,
d = D / H, D hidden size, F feed-forward size, R = B * L rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.model.kernels.threads import side_by_side

_INTEGER = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
_keep_above = torch.ops.aten.threshold_backward.grad_input  # (x, y, t): x where y > t, else 0


def supports(x: Tensor) -> bool:
    """Whether the functions here are for a step that computes `x`: on the CPU, unless it only pretends to compute (`cost`)."""
    return x.device.type == "cpu" and type(x) is Tensor


def product_type(x: Tensor) -> torch.dtype:
    """The type of matrix products with `x`, under autocast or not."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64 else x.dtype


@dataclass(frozen=True)
class Mask:
    """Which entries of a tensor dropout keeps: 16 random bits each, drawn from `seed` whenever they are needed, which costs less than keeping them.

    An entry stays with probability `keep` / 65536, and nothing is scaled.
    """

    keep: int
    seed: int

    @classmethod
    def draw(cls, keep: int) -> Mask:
        """A mask by torch's global generator."""
        return cls(keep, int(torch.randint(2**62, ())) if keep < 65536 else 0)

    def drop_(self, x: Tensor) -> Tensor:
        """Sets entries of `x`, which is contiguous, to zero in place."""
        if self.keep == 65536:
            return x
        bits = torch.from_numpy(np.random.SFC64(self.seed).random_raw((x.numel() + 3) // 4).view(np.int16))
        # Compared and kept as integers of the size of x, which vectorises; turning a mask into numbers takes ten times as long.
        flat, last = x.view(_INTEGER[x.dtype]).view(-1), 32767 - self.keep  # the largest 16-bit number that drops
        if x.element_size() == 2:
            _keep_above(flat, bits[: len(flat)], last, grad_input=flat)
            return x
        # A 32-bit number decides twice: by its upper 16 bits, then by its lower ones, shifted up.
        limit, half = last * 65536 + 65535, (len(flat) + 1) // 2
        pairs = bits.view(torch.int32)[:half]
        _keep_above(flat[:half], pairs.to(flat.dtype), limit, grad_input=flat[:half])
        lower = pairs.bitwise_left_shift_(16)[: len(flat) - half]
        _keep_above(flat[half:], lower.to(flat.dtype), limit, grad_input=flat[half:])
        return x


class Drop(torch.autograd.Function):
    """Dropout of a tensor of any shape, kept with probability keep / 65536."""

    @staticmethod
    def forward(context: Any, x: Tensor, keep: int) -> Tensor:
        context.mask = Mask.draw(keep)
        return context.mask.drop_(x.contiguous() * (65536 / keep))  # type: ignore[no-any-return]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return context.mask.drop_(gradient.contiguous() * (65536 / context.mask.keep)), None


class DroppedLinear(torch.autograd.Function):
    """LayerNorm, dropout, Linear, ReLU: of the rows between, nothing is kept."""

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
        """x (.., in), weight (out, in), products in `dtype` -> (.., out)."""
        context.mask, context.keep = Mask.draw(keep), keep
        normed, mean, deviation = torch.native_layer_norm(x.flatten(0, -2), (x.shape[-1],), norm_w, norm_b, 1e-5)
        rows = context.mask.drop_(normed.to(dtype))
        projected = torch.addmm(bias.to(dtype), rows, weight.to(dtype).T, alpha=65536 / keep).relu_()
        context.save_for_backward(x, mean, deviation, projected, norm_w, norm_b, weight)
        return projected.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, mean, deviation, projected, norm_w, norm_b, weight = context.saved_tensors
        dtype, scale, size = projected.dtype, 65536 / context.keep, (x.shape[-1],)
        d_projected = gradient.flatten(0, -2).to(dtype) * scale
        _keep_above(d_projected, projected, 0, grad_input=d_projected)
        rows = context.mask.drop_(torch.native_layer_norm(x.flatten(0, -2), size, norm_w, norm_b, 1e-5)[0].to(dtype))
        d_weight = _put_product(torch.empty_like(weight), d_projected.T, rows)
        d_normed = context.mask.drop_(d_projected @ weight.to(dtype)).to(norm_w.dtype)
        wanted = (context.needs_input_grad[0], True, False)
        d_x, d_norm_w, _ = torch.ops.aten.native_layer_norm_backward(
            d_normed, x.flatten(0, -2).to(norm_w.dtype), size, mean, deviation, norm_w, norm_b, wanted
        )
        d_x = d_x.view_as(x).to(x.dtype) if wanted[0] else None
        return d_x, None, None, d_norm_w, d_normed.sum(0), d_weight, d_projected.sum(0).to(weight.dtype) / scale


@dataclass(frozen=True)
class Setting:
    """What decides a block's computation besides its tensors."""

    heads: int
    keep: int  # of 65536
    gradients: bool  # whether a backward pass may follow
    dtype: torch.dtype  # of matrix products

    @property
    def scale(self) -> float:
        """What dropout multiplies by; it is folded into weights and factors."""
        return 65536 / self.keep

    def mask(self) -> Mask:
        return Mask.draw(self.keep)


class AttentionBlock(torch.autograd.Function):
    """N attention blocks over the same tokens, as `attention.SelfAttention` describes them, dropout included."""

    @staticmethod
    def forward(
        context: Any,
        setting: Setting,
        tokens: Tensor,
        registers: Tensor | None,
        factors: Tensor | None,
        key_mask: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        """weights: of query, key_value, attention_norm, widen, narrow, output_norm, each weight and bias -> (N, B, L, D)."""
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
        (_, length, size), branches, dtype = tokens.shape, len(query_w), setting.dtype
        seen = tokens if registers is None else torch.cat([tokens, registers.to(tokens.dtype)], 1)
        rows, seen_rows = tokens.flatten(0, 1), seen.flatten(0, 1).to(dtype)
        # Of several branches, in the type that the products with them want.
        outputs = rows.new_empty(branches, *tokens.shape, dtype=dtype if branches > 1 else None)
        random = [[setting.mask() for _ in range(setting.heads + 3)] for _ in range(branches)]

        def branch(_: int, n: int) -> list[Tensor]:
            weight = torch.cat([query_w[n], key_value_w[n], key_value_w[branches + n]]).to(dtype)
            bias = torch.cat([query_b[n], key_value_b[n], key_value_b[branches + n]]).to(dtype)
            projected = torch.addmm(bias, seen_rows, weight.T).view(*seen.shape[:2], 3, size)
            query, key, value = _query_key_value(projected, length)
            attended = rows.new_empty(tokens.shape, dtype=dtype)
            *head_masks, attended_mask, inner_mask, fed_mask = random[n]
            probabilities = []
            for columns, mask in zip(_head_columns(size, setting.heads), head_masks, strict=True):
                scores = query[..., columns] @ key[..., columns].transpose(1, 2)
                scores.mul_(_factors(factors, n, size // setting.heads))
                if key_mask is not None:
                    scores.add_(key_mask.unsqueeze(1))
                shares = torch.softmax(scores, -1, dtype=_precise(dtype)).to(dtype)
                if setting.gradients:
                    probabilities.append(shares)
                    shares = shares.clone()
                attended[..., columns] = mask.drop_(shares) @ value[..., columns]
            del scores, shares
            # From here on the scales of dropout are folded in: of the probabilities and of what they gather ..
            added = torch.add(rows, attended_mask.drop_(attended).view_as(rows), alpha=setting.scale**2)
            x, mean1, deviation1 = torch.native_layer_norm(added, (size,), norm1_w[n], norm1_b[n], 1e-5)
            inner = torch.addmm(widen_b[n].to(dtype), x.to(dtype), widen_w[n].to(dtype).T).relu_()
            inner_mask.drop_(inner)
            # .. and of the feed-forward part's inner and outer entries.
            fed = torch.addmm(narrow_b[n].to(dtype), inner, narrow_w[n].to(dtype).T, alpha=setting.scale)
            summed = torch.add(x, fed_mask.drop_(fed), alpha=setting.scale)
            normed, mean2, deviation2 = torch.native_layer_norm(summed, (size,), norm2_w[n], norm2_b[n], 1e-5)
            outputs[n] = normed.view_as(tokens)
            return (
                [projected, *probabilities, added, mean1, deviation1, inner, summed, mean2, deviation2]
                if setting.gradients
                else []
            )

        saved = [tensor for each in side_by_side(branch, branches) for tensor in each]
        context.setting, context.random = setting, random
        context.save_for_backward(tokens, registers, factors, *weights, *saved)
        return outputs

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        setting: Setting = context.setting
        tokens, registers, factors, *tensors = context.saved_tensors
        query_w, _, key_value_w, _, norm1_w, norm1_b, widen_w, _, narrow_w, _, norm2_w, norm2_b = tensors[:12]
        (videos, length, size), branches, dtype = tokens.shape, len(query_w), setting.dtype
        each, scale = setting.heads + 8, setting.scale
        seen = tokens if registers is None else torch.cat([tokens, registers.to(tokens.dtype)], 1)
        seen_rows = seen.flatten(0, 1).to(dtype)
        sums: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # of each thread: the gradients of the tokens' rows and of the rows seen
        made = [torch.empty_like(weight) for weight in tensors[:12]]
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
            *d_norm2,
        ) = made

        def branch(thread: int, number: int) -> None:
            n = branches - 1 - number  # the last branch first: what is kept of it was written last
            if thread not in sums:
                sums[thread] = torch.zeros_like(tokens).flatten(0, 1), torch.zeros_like(seen).flatten(0, 1)
            to_tokens, to_seen = sums[thread]
            projected, *rest = tensors[12 + n * each : 12 + (n + 1) * each]
            probabilities, (added, mean1, deviation1, inner, summed, mean2, deviation2) = (
                rest[: setting.heads],
                rest[setting.heads :],
            )
            query, key, value = _query_key_value(projected, length)
            *head_masks, attended_mask, _, fed_mask = context.random[n]
            outer = gradient[n].flatten(0, 1).to(tokens.dtype).contiguous()
            d_summed, d_norm2[0][n], d_norm2[1][n] = _norm_backward(
                outer, summed, mean2, deviation2, norm2_w[n], norm2_b[n]
            )
            d_fed = fed_mask.drop_(d_summed.to(dtype, copy=True)).mul_(scale)
            d_narrow_b[n] = d_fed.sum(0)
            _put_product(d_narrow_w[n], d_fed.T, inner).mul_(scale)
            # Where `inner` is zero it was negative or dropped.
            d_inner = d_fed @ (narrow_w[n] * scale).to(dtype)
            _keep_above(d_inner, inner, 0, grad_input=d_inner)
            x = torch.native_layer_norm(added, (size,), norm1_w[n], norm1_b[n], 1e-5)[0].to(dtype)
            d_widen_b[n] = d_inner.sum(0)
            _put_product(d_widen_w[n], d_inner.T, x)
            d_x = _add_product_(d_summed, d_inner, widen_w[n])
            del d_fed, d_inner, x
            d_added, d_norm1_w[n], d_norm1_b[n] = _norm_backward(d_x, added, mean1, deviation1, norm1_w[n], norm1_b[n])
            to_tokens += d_added
            d_attended = attended_mask.drop_(d_added.to(dtype, copy=True)).mul_(scale**2).view(videos, length, size)
            d_projected = torch.empty_like(projected)
            d_query, d_key, d_value = _query_key_value(d_projected, length)
            d_projected[:, length:, 0] = 0  # registers ask nothing
            for columns, shares, mask in zip(
                _head_columns(size, setting.heads), probabilities, head_masks, strict=True
            ):
                d_out = d_attended[..., columns]
                d_value[..., columns] = mask.drop_(shares.clone()).transpose(1, 2) @ d_out
                d_scores = mask.drop_(d_out @ value[..., columns].transpose(1, 2))
                d_scores = torch._softmax_backward_data(
                    d_scores.to(_precise(dtype)), shares.to(_precise(dtype)), -1, _precise(dtype)
                )
                d_scores = d_scores.mul_(_factors(factors, n, size // setting.heads)).to(dtype)
                d_query[..., columns] = d_scores @ key[..., columns]
                d_key[..., columns] = d_scores.transpose(1, 2) @ query[..., columns]
            d_rows = d_projected.view(-1, 3 * size)
            weight = torch.cat([query_w[n], key_value_w[n], key_value_w[branches + n]])
            d_bias, d_weight = d_rows.sum(0).split(size), (d_rows.T @ seen_rows).split(size)
            d_query_b[n], d_key_value_b[n], d_key_value_b[branches + n] = d_bias
            d_query_w[n], d_key_value_w[n], d_key_value_w[branches + n] = d_weight
            _add_product_(to_seen, d_rows, weight)

        side_by_side(branch, branches)
        to_tokens, to_seen = sums[0]
        for thread in range(1, len(sums)):
            to_tokens += sums[thread][0]
            to_seen += sums[thread][1]
        to_seen = to_seen.view_as(seen)
        to_registers = None if registers is None else to_seen[:, length:].to(registers.dtype)
        return None, to_tokens.view_as(tokens) + to_seen[:, :length], to_registers, None, None, *made


def _query_key_value(projected: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of (B, S, 3, D): the queries (B, L, D) of the tokens, the keys and the values (B, S, D)."""
    return projected[:, :length, 0], projected[:, :, 1], projected[:, :, 2]


def _head_columns(size: int, heads: int) -> list[slice]:
    return [slice(start, start + size // heads) for start in range(0, size, size // heads)]


def _factors(factors: Tensor | None, branch: int, head_size: int) -> Tensor | float:
    return 1 / math.sqrt(head_size) if factors is None else factors[branch]


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # It adds up the bias's gradient row after row, which rounds ten times more than torch's sum.
    d_x, d_weight, _ = torch.ops.aten.native_layer_norm_backward(
        gradient, x, (x.shape[-1],), mean, deviation, weight, bias, (True, True, False)
    )
    return d_x, d_weight, gradient.sum(0)


def _put_product(into: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """into = left @ right, computed in the type of these."""
    return torch.mm(left, right, out=into) if into.dtype == left.dtype else into.copy_(left @ right)


def _add_product_(into: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """into += rows @ weight, computed in the type of `rows`."""
    if into.dtype == rows.dtype:
        return torch.addmm(into, rows, weight, out=into)
    return into.add_(rows @ weight.to(rows.dtype))
