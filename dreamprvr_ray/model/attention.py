"""The attention blocks and the parts they are built of (model page, section 2).

Branches with weights of their own are computed together: their parameters are stacked along the leading axis and their rows are
projected, attended and fed forward in batched operations.

B videos or queries, L tokens, S keys (tokens and registers), K registers, N branches, H heads, d = D / H, D hidden size, F feed-forward
size, C = contexts (B, or N * B), R rows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamprvr_ray.model.kernels import compiled as fused
from dreamprvr_ray.model.kernels import cpu

MASKED = -10000.0  # added to the score of a key that is not to be seen


class Dropout(nn.Module):
    """Dropout whose mask costs little on the CPU.

    There, torch draws one float per element. Here an element takes 16 random bits, so the probability is rounded to a multiple of 2^-16;
    values are scaled by the probability with which they are really kept.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.kept = round((1 - probability) * 65536)  # of the 65536 values of a 16-bit number
        self.register_buffer("keep", torch.tensor(1 - probability), persistent=False)  # for the fused functions
        self.keep: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape; unchanged in evaluation."""
        if not self.training or self.kept == 65536:
            return x
        if not cpu.supports(x):
            return F.dropout(x, self.probability)
        dropped: Tensor = cpu.Drop.apply(x, self.kept)
        return dropped

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class StackedLinear(nn.Module):
    """`parts` linear layers side by side: weight (parts, out, in), bias (parts, out)."""

    def __init__(self, parts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(parts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(parts, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Each part on rows of its own: (parts, R, in) -> (parts, R, out)."""
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))

    def shared(self, x: Tensor) -> Tensor:
        """All parts on the same rows: (..., in) -> (..., parts * out), in one product."""
        return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())


class StackedLayerNorm(nn.Module):
    """`parts` layer norms side by side: weight and bias (parts, D)."""

    def __init__(self, parts: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(parts, size))
        self.bias = nn.Parameter(torch.zeros(parts, size))

    def forward(self, x: Tensor) -> Tensor:
        """(parts, R, D) -> (parts, R, D), at least in float32."""
        parts, size = self.weight.shape
        if parts == 1:
            return F.layer_norm(x, (size,), self.weight[0], self.bias[0])
        return torch.addcmul(self.bias.unsqueeze(1), F.layer_norm(x, (size,)), self.weight.unsqueeze(1))


class PostNormFeedForward(nn.Module):
    """What follows attention in every block: x = LN(x + drop(attended)); x = LN(x + drop(FFN(x)))."""

    compiled = False  # whether training on a GPU uses the compiled chains of `fused`

    def __init__(self, branches: int, size: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = StackedLayerNorm(branches, size)
        self.widen = StackedLinear(branches, size, inner)
        self.narrow = StackedLinear(branches, inner, size)
        self.output_norm = StackedLayerNorm(branches, size)
        self.dropout = Dropout(dropout)

    def forward(self, residual: Tensor, attended: Tensor) -> Tensor:
        """residual (R, D), shared by the branches, or (N, R, D); attended (N, R, D) -> (N, R, D)."""
        if self.compiled and self.training and len(attended) > 1 and fused.supports(attended):
            return self._fused(residual, attended)
        x = self.attention_norm(residual + self.dropout(attended))
        inner = self.dropout(self.widen(x).relu_())
        fed: Tensor = self.output_norm(x + self.dropout(self.narrow(inner)))
        return fed

    def _fused(self, residual: Tensor, attended: Tensor) -> Tensor:
        keep = self.dropout.keep
        x = fused.added_and_normed(residual, attended, None, self.attention_norm.weight, self.attention_norm.bias, keep)
        inner = fused.rectified_and_dropped(x @ self.widen.weight.transpose(1, 2), self.widen.bias, keep)
        fed = inner @ self.narrow.weight.transpose(1, 2)
        return fused.added_and_normed(x, fed, self.narrow.bias, self.output_norm.weight, self.output_norm.bias, keep)


class SelfAttention(nn.Module):
    """N Gaussian attention blocks side by side, each over the same tokens (and registers, which are seen and do not see)."""

    compiled = False

    def __init__(self, branches: int, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.branches, self.heads = branches, heads
        self.query = StackedLinear(branches, size, size)
        self.key_value = StackedLinear(2 * branches, size, size)  # the keys of all branches, then their values
        self.dropout = Dropout(dropout)
        self.feed_forward = PostNormFeedForward(branches, size, 4 * size, dropout)

    def forward(
        self, tokens: Tensor, registers: Tensor | None, factors: Tensor | None, key_mask: Tensor | None
    ) -> Tensor:
        """The token rows of every branch.

        tokens (B, L, D); registers (B, K, D) or None; factors (N, L, S) multiply the scores, 1 / sqrt(d) included (None: that alone);
        key_mask (B, S), added to the scores, None where every key is seen -> (N, B, L, D).
        """
        if cpu.supports(tokens):
            return self._on_cpu(tokens, registers, factors, key_mask)
        (videos, length, size), n, h = tokens.shape, self.branches, self.heads
        seen = tokens if registers is None else torch.cat([tokens, registers.to(tokens.dtype)], dim=1)
        query = self.query.shared(tokens).view(videos, length, n, h, size // h)
        key, value = self.key_value.shared(seen).view(videos, seen.shape[1], 2, n, h, size // h).unbind(2)
        if self.compiled and self.training and factors is not None and fused.supports(query):
            # The keys are copied as they lie and then transposed: the other way round the copy takes twice as long.
            scores = query.permute(0, 2, 3, 1, 4) @ key.permute(0, 2, 3, 1, 4).contiguous().transpose(3, 4)
            probabilities = fused.dropped_probabilities(scores, factors, key_mask, self.dropout.keep)
        else:
            scores = query.permute(0, 2, 3, 1, 4) @ key.permute(0, 2, 3, 4, 1)  # (B, N, H, L, S)
            # In place: the product's backward needs its inputs alone, and this is the largest tensor of all.
            scores.mul_(1 / math.sqrt(size // h) if factors is None else factors.unsqueeze(1))
            if key_mask is not None:
                scores.add_(key_mask[:, None, None, None, :])
            probabilities = self.dropout(_softmax(scores))
        attended = probabilities @ value.permute(0, 2, 3, 1, 4)  # (B, N, H, L, d)
        attended = attended.permute(1, 0, 3, 2, 4).reshape(n, videos * length, size)
        rows: Tensor = self.feed_forward(tokens.flatten(0, 1), attended)
        return rows.view(n, videos, length, size)

    def _on_cpu(
        self, tokens: Tensor, registers: Tensor | None, factors: Tensor | None, key_mask: Tensor | None
    ) -> Tensor:
        fed = self.feed_forward
        parts = (self.query, self.key_value, fed.attention_norm, fed.widen, fed.narrow, fed.output_norm)
        setting = cpu.Setting(
            self.heads, self.dropout.kept if self.training else 65536, torch.is_grad_enabled(), cpu.product_type(tokens)
        )
        weights = [tensor for part in parts for tensor in (part.weight, part.bias)]
        outputs: Tensor = cpu.AttentionBlock.apply(setting, tokens, registers, factors, key_mask, *weights)
        return outputs


class CrossAttention(nn.Module):
    """The cross-attention block: few queries over many tokens.

    The tokens are never projected. A head's score q . (W_k t) is (W_k^T q) . t and its value sum p (W_v t) is W_v (sum p t), so the
    projections move to the queries' side, of which there are fewer.
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
        """queries (C, Lq, D), tokens (C, S, D), key_mask (C, S) added to the scores, None where every token is seen -> (C, Lq, D)."""
        (contexts, count, size), h = queries.shape, self.heads
        d = size // h
        query = self.query(queries).view(contexts, count, h, d) / math.sqrt(d)
        inward = torch.einsum("cqhd,hde->chqe", query, self.key.weight.view(h, d, size))
        # The key's bias moves all scores of a query alike: softmax does not see it, its gradient is zero.
        offset = torch.einsum("cqhd,hd->chq", query, self.key.bias.view(h, d))
        scores = (inward.flatten(1, 2) @ tokens.transpose(1, 2)).view(contexts, h, count, tokens.shape[1])
        scores = scores + offset.unsqueeze(-1)
        if key_mask is not None:
            scores = scores + key_mask[:, None, None, :]
        probabilities = self.dropout(_softmax(scores))
        gathered = (probabilities.flatten(1, 2) @ tokens).view(contexts, h, count, size)
        attended = torch.einsum("chqe,hde->cqhd", gathered, self.value.weight.view(h, d, size))
        # Dropout leaves probabilities that do not sum to 1; the value's bias carries their sum.
        attended = attended + probabilities.sum(-1).transpose(1, 2).unsqueeze(-1) * self.value.bias.view(h, d)
        rows: Tensor = self.feed_forward(queries.reshape(-1, size), attended.reshape(1, -1, size))
        return rows.view(contexts, count, size)


def gaussian_factors(branches: int, length: int, registers: int, head_size: int) -> Tensor:
    """What the scores of a fusion block's branches are multiplied by, 1 / sqrt(head_size) included: (N, L, L + K).

    The first branch has no width, the others 2^-2, 2^-1, .. 2^(N-4); registers' columns are 1.
    """
    # The centre is i/L and the grid j/(L-1), as in the authors' model (page, section 2).
    grid = torch.arange(length, dtype=torch.float64) / max(length - 1, 1)
    centre = torch.arange(length, dtype=torch.float64).unsqueeze(1) / length
    factors = torch.ones(branches, length, length + registers, dtype=torch.float64)
    for branch in range(1, branches):
        deviation = max(2.0 ** (branch - 3), 0.01) / 9
        square = torch.exp(-((grid - centre) ** 2) / (2 * deviation**2))
        factors[branch, :, :length] = square / square.amax(1, keepdim=True)
    return (factors / math.sqrt(head_size)).float()


def additive_mask(mask: Tensor) -> Tensor:
    """0 where a bool mask is true, -10000 elsewhere."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, MASKED)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis, computed in float32 or better, returned in the type of `scores`."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
