"""The attention blocks and their parts (docs/model.md, section 2).

Branches have their own weights and are computed together: their parameters are stacked along the leading axis, and
their projections, attention and feed-forward networks are batched operations.

Shapes, in this file:
    B  videos or queries          N  branches               D  hidden size
    L  tokens                     H  heads                  d  D / H
    K  registers                  C  contexts: B or N * B   F  feed-forward size
    S  keys, L + K                R  rows, B * L            Q  queries of a context (cross-attention)
    P  parts of a stack           I  input size             O  output size
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamprvr_ray.model import kernels

MASKED = -10000.0  # added to the scores of masked keys


class Dropout(kernels.Accelerated):
    """Dropout. On the CPU, the probability is rounded to a multiple of 2^-16 (`kernels.dropout_mask`)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.register_buffer("keep", torch.tensor(1 - probability), persistent=False)  # for `kernels.compiled`
        self.keep: Tensor  # ()

    @kernels.dropout
    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of `x`, of any shape. Return `x` itself in evaluation mode."""
        return F.dropout(x, self.probability) if self.training and self.probability > 0 else x

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class StackedLinear(nn.Module):
    """P linear layers: weight (P, O, I), bias (P, O)."""

    def __init__(self, parts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(parts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(parts, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply each part to its own rows: (P, R, I) -> (P, R, O)."""
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))

    def on_shared_rows(self, x: Tensor) -> Tensor:
        """Apply all parts to the same rows, in one product: (..., I) -> (..., P * O)."""
        return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())


class StackedLayerNorm(nn.Module):
    """P layer norms: weight and bias (P, D)."""

    def __init__(self, parts: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(parts, size))
        self.bias = nn.Parameter(torch.zeros(parts, size))

    def forward(self, x: Tensor) -> Tensor:
        """Apply each part to its own rows: (P, R, D) -> (P, R, D), in float32 or better."""
        parts, size = self.weight.shape
        if parts == 1:
            return F.layer_norm(x, (size,), self.weight[0], self.bias[0])
        return torch.addcmul(self.bias.unsqueeze(1), F.layer_norm(x, (size,)), self.weight.unsqueeze(1))


class PostNormFeedForward(kernels.Accelerated):
    """The end of every attention block: x = LN(x + drop(attended)); x = LN(x + drop(FFN(x)))."""

    def __init__(self, branches: int, size: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = StackedLayerNorm(branches, size)
        self.widen = StackedLinear(branches, size, inner)
        self.narrow = StackedLinear(branches, inner, size)
        self.output_norm = StackedLayerNorm(branches, size)
        self.dropout = Dropout(dropout)

    @kernels.feed_forward
    def forward(self, residual: Tensor, attended: Tensor) -> Tensor:
        """residual (R, D), shared by all branches, or (N, R, D); attended (N, R, D) -> (N, R, D)."""
        x = self.attention_norm(residual + self.dropout(attended))
        inner = self.dropout(self.widen(x).relu_())
        rows: Tensor = self.output_norm(x + self.dropout(self.narrow(inner)))
        return rows


class SelfAttention(kernels.Accelerated):
    """N Gaussian attention blocks over the same tokens. Registers serve as keys and values only."""

    def __init__(self, branches: int, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.branches, self.heads = branches, heads
        self.query = StackedLinear(branches, size, size)
        self.key_value = StackedLinear(2 * branches, size, size)  # the keys of all branches, then their values
        self.dropout = Dropout(dropout)
        self.feed_forward = PostNormFeedForward(branches, size, 4 * size, dropout)

    @kernels.self_attention
    def forward(
        self, tokens: Tensor, registers: Tensor | None, factors: Tensor | None, key_mask: Tensor | None
    ) -> Tensor:
        """Return the token rows of every branch, (N, B, L, D).

        tokens (B, L, D); registers (B, K, D) or None. factors (N, L, S) multiply the scores and include 1 / sqrt(d);
        None stands for 1 / sqrt(d) alone. key_mask (B, S) is added to the scores; None masks no key.
        """
        (videos, length, size), n, h = tokens.shape, self.branches, self.heads
        sources = tokens if registers is None else torch.cat([tokens, registers.to(tokens.dtype)], dim=1)  # (B, S, D)
        query = self.query.on_shared_rows(tokens).view(videos, length, n, h, size // h)
        key_value = self.key_value.on_shared_rows(sources).view(videos, sources.shape[1], 2, n, h, size // h)
        key, value = key_value.unbind(2)
        probabilities = self._probabilities(query, key, factors, key_mask)
        attended = probabilities @ value.permute(0, 2, 3, 1, 4)  # (B, N, H, L, d)
        attended = attended.permute(1, 0, 3, 2, 4).reshape(n, videos * length, size)
        rows: Tensor = self.feed_forward(tokens.flatten(0, 1), attended)
        return rows.view(n, videos, length, size)

    @kernels.attention_probabilities
    def _probabilities(self, query: Tensor, key: Tensor, factors: Tensor | None, key_mask: Tensor | None) -> Tensor:
        """query (B, L, N, H, d), key (B, S, N, H, d) -> the probabilities after dropout, (B, N, H, L, S)."""
        scores = query.permute(0, 2, 3, 1, 4) @ key.permute(0, 2, 3, 4, 1)
        # In place: the product's backward pass needs only its inputs, and this is the largest tensor of all.
        scores.mul_(1 / math.sqrt(query.shape[-1]) if factors is None else factors.unsqueeze(1))
        if key_mask is not None:
            scores.add_(key_mask[:, None, None, None, :])
        probabilities: Tensor = self.dropout(_softmax(scores))
        return probabilities


class CrossAttention(nn.Module):
    """The cross-attention block: few queries over many tokens.

    The tokens are never projected. A head's score q . (W_k t) equals (W_k^T q) . t, and its value sum p (W_v t) equals
    W_v (sum p t). So the projections are applied on the side of the queries, of which there are fewer.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.dropout = Dropout(dropout)
        self.feed_forward = PostNormFeedForward(1, size, size, dropout)

    def forward(self, queries: Tensor, tokens: Tensor, key_mask: Tensor | None) -> Tensor:
        """queries (C, Q, D), tokens (C, S, D), key_mask (C, S) added to the scores or None -> (C, Q, D)."""
        (contexts, count, size), h = queries.shape, self.heads
        d = size // h
        query = self.query(queries).view(contexts, count, h, d) / math.sqrt(d)
        inward = torch.einsum("cqhd,hde->chqe", query, self.key.weight.view(h, d, size))
        # The key's bias shifts all scores of a query alike: softmax ignores the shift, and its gradient is zero.
        offset = torch.einsum("cqhd,hd->chq", query, self.key.bias.view(h, d))
        scores = (inward.flatten(1, 2) @ tokens.transpose(1, 2)).view(contexts, h, count, tokens.shape[1])
        scores = scores + offset.unsqueeze(-1)
        if key_mask is not None:
            scores = scores + key_mask[:, None, None, :]
        probabilities = self.dropout(_softmax(scores))
        gathered = (probabilities.flatten(1, 2) @ tokens).view(contexts, h, count, size)
        attended = torch.einsum("chqe,hde->cqhd", gathered, self.value.weight.view(h, d, size))
        # After dropout the probabilities no longer sum to 1, so the value's bias is multiplied by their sum.
        attended = attended + probabilities.sum(-1).transpose(1, 2).unsqueeze(-1) * self.value.bias.view(h, d)
        rows: Tensor = self.feed_forward(queries.reshape(-1, size), attended.reshape(1, -1, size))
        return rows.view(contexts, count, size)


def gaussian_factors(branches: int, length: int, registers: int, head_size: int) -> Tensor:
    """Return what multiplies the scores of a fusion block's branches, (N, L, L + K): G_w / sqrt(head_size).

    The first branch has no width, the others have the widths w = 2^-2, 2^-1, ..., 2^(N-4). The registers' columns have
    G_w = 1.
    """
    # The centre is i / L and the grid j / (L - 1), as in the authors' model.
    grid = torch.arange(length, dtype=torch.float64) / max(length - 1, 1)
    centre = torch.arange(length, dtype=torch.float64).unsqueeze(1) / length
    factors = torch.ones(branches, length, length + registers, dtype=torch.float64)
    for branch in range(1, branches):
        deviation = max(2.0 ** (branch - 3), 0.01) / 9
        square = torch.exp(-((grid - centre) ** 2) / (2 * deviation**2))
        factors[branch, :, :length] = square / square.amax(1, keepdim=True)
    return (factors / math.sqrt(head_size)).float()


def additive_mask(mask: Tensor) -> Tensor:
    """Return 0 where a bool mask is true and -10000 elsewhere, in float32."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, MASKED)


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last axis, computed in float32 or better, in the type of `scores`."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
