"""Registers: condition, variational sampler and truncated diffusion (docs/model.md, section 2, "Video context").

The sampler and the diffusion always compute in float32 or better, because the first reverse steps amplify the
denoiser's rounding errors about fifty times. `DreamPRVR.encode_videos` disables autocast for them.

Shapes, in this file:
    B  videos                     K  registers                   D  hidden size
    M  clip tokens (32)           T  diffusion steps             G  size of position codes and GRU (32)
    J  K, or 1 for a noise that all registers of a video share
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamprvr_ray.model.attention import CrossAttention

POSITION_SIZE = 32  # G
POOLING_TEMPERATURE = 0.1
COSINE_OFFSET = 0.008  # of the noise schedule
NOISE_SEED = 0  # of `fixed_noise`


def perturbed_start(query_mean: Tensor, alpha_noise: Tensor, beta_noise: Tensor) -> Tensor:
    """Return the textual perturbation sampler's x_0 = alpha * IN(q_mean) + beta, (B, K, D).

    query_mean (B, D) is the mean of each video's queries; both noises (B, K, D) are standard normal. alpha ~ N(1, 0.1
    s) and beta ~ N(m, 0.1 s), where m and s are the row's mean and unbiased deviation. No gradient flows through m and
    s.
    """
    row = query_mean.unsqueeze(1)
    mean = row.detach().mean(-1, keepdim=True)
    spread = 0.1 * ((row.detach() - mean).square().sum(-1, keepdim=True) / (row.shape[-1] - 1)).sqrt()
    standardised = F.layer_norm(row, row.shape[-1:])
    return (1 + spread * alpha_noise) * standardised + (mean + spread * beta_noise)


class PartPooling(nn.Module):
    """Registers without diffusion: the means of K equal parts of a video's context. It has no parameters.

    Part k reaches from floor(k M / K) to ceil((k + 1) M / K), so that neighbours share a token if K does not divide M.
    """

    def __init__(self, registers: int, positions: int) -> None:
        super().__init__()
        # A matrix product, because the gradient of torch's adaptive pooling is not deterministic on a GPU.
        weights = F.adaptive_avg_pool1d(torch.eye(positions), registers).T.contiguous()
        self.register_buffer("weights", weights, persistent=False)
        self.weights: Tensor  # (K, M)

    def forward(self, context: Tensor) -> Tensor:
        """context (B, M, D) -> (B, K, D)."""
        return self.weights.to(context.dtype) @ context


def fixed_noise(registers: int, size: int) -> Tensor:
    """Return the standard normal noise (1, K, D) from which every video's registers start in evaluation.

    It is the same in every process: an encoding depends neither on the batch nor on the worker.
    """
    return torch.randn(1, registers, size, generator=torch.Generator().manual_seed(NOISE_SEED))


def variational_divergences(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return each video's -1/2 sum_D (1 + logvar - mu^2 - exp(logvar)): mu and logvar (B, D) -> (B,)."""
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(-1)


def sinusoid(rows: int, size: int) -> Tensor:
    """Return codes (rows, size): sin in even columns, cos in odd ones.

    The frequencies are exp(-ln(10000) * i / size), i = 0, 2, 4, ...
    """
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(rows, dtype=torch.float64).unsqueeze(1) * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


class Condition(nn.Module):
    """K learned tokens that attend to a video's context."""

    def __init__(self, registers: int, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(1, registers, size))
        self.attention = CrossAttention(size, heads, dropout)

    def forward(self, context: Tensor) -> Tensor:
        """context (B, M, D) -> (B, K, D)."""
        condition: Tensor = self.attention(self.tokens.expand(len(context), -1, -1), context, None)
        return condition


class SortedPooling(nn.Module):
    """The average of each channel's values, sorted in descending order, with weights that depend only on the rank."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.register_buffer("codes", sinusoid(positions, POSITION_SIZE).unsqueeze(0), persistent=False)
        self.codes: Tensor
        self.gru = nn.GRU(POSITION_SIZE, POSITION_SIZE, batch_first=True, bidirectional=True)
        self.score = nn.Linear(POSITION_SIZE, 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, M, D) -> (B, D)."""
        states = self.gru(self.codes)[0]
        directions = states.view(states.shape[1], 2, POSITION_SIZE).mean(1)
        weights = torch.softmax(self.score(directions) / POOLING_TEMPERATURE, dim=0)  # (M, 1)
        return (tokens.sort(dim=1, descending=True).values.transpose(1, 2) @ weights).squeeze(-1)


class SelfAttentivePooling(nn.Module):
    """The average of tokens, weighted by a small network that scores each of them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(size, size // 2, bias=False)
        self.score = nn.Linear(size // 2, 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, M, D) -> (B, D)."""
        weights = torch.softmax(self.score(torch.tanh(self.hidden(tokens))), dim=1)
        return (weights.transpose(1, 2) @ tokens).squeeze(1)


class VariationalSampler(nn.Module):
    """The probabilistic variational sampler: a video's mu, of unit length, and logvar."""

    def __init__(self, positions: int, size: int) -> None:
        super().__init__()
        self.pooling = SortedPooling(positions)
        self.mu_pooling = SelfAttentivePooling(size)
        self.mu_gate = nn.Linear(size, size)
        self.mu_norm = nn.LayerNorm(size)
        self.logvar_pooling = SelfAttentivePooling(size)
        self.logvar_attended = nn.Linear(size, size)
        self.logvar_pooled = nn.Linear(size, size)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, M, D) -> mu (B, D), logvar (B, D)."""
        pooled = self.pooling(context)
        mu = F.normalize(self.mu_norm(pooled + torch.sigmoid(self.mu_gate(self.mu_pooling(context)))), dim=-1)
        logvar = self.logvar_attended(self.logvar_pooling(context)) + self.logvar_pooled(pooled)
        return mu, logvar


@dataclass(frozen=True)
class DiffusionSchedule:
    """The coefficients of a noise schedule at each step t = 0, ..., T-1."""

    start_scale: list[float]  # of x_0 in x_t: sqrt(abar_t)
    noise_scale: list[float]  # of the noise in x_t: sqrt(1 - abar_t)
    state_inverse: list[float]  # of x_t in the estimate of x_0: sqrt(1 / abar_t)
    error_inverse: list[float]  # of the predicted noise in the estimate of x_0: sqrt(1 / abar_t - 1)
    start_share: list[float]  # of the estimated x_0 in x_{t-1}: coef1_t
    state_share: list[float]  # of x_t in x_{t-1}: coef2_t
    deviation: list[float]  # of the noise in x_{t-1}: sqrt(v_t), and 0 at t = 0

    @staticmethod
    def cosine(steps: int) -> DiffusionSchedule:
        """Return the cosine schedule of T = `steps` steps, computed in float64, with betas clamped to [0, 0.999]."""

        def level(progress: float) -> float:
            return math.cos((progress + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2

        betas = [min(max(1 - level((t + 1) / steps) / level(t / steps), 0.0), 0.999) for t in range(steps)]
        products = [math.prod(1 - beta for beta in betas[: t + 1]) for t in range(steps)]
        before = [1.0, *products[:-1]]
        # The specification sets v_0 := v_1, which is never used: no noise is added at t = 0.
        variances = [beta * (1 - b) / (1 - a) for beta, a, b in zip(betas, products, before, strict=True)]
        return DiffusionSchedule(
            start_scale=[math.sqrt(a) for a in products],
            noise_scale=[math.sqrt(1 - a) for a in products],
            state_inverse=[math.sqrt(1 / a) for a in products],
            error_inverse=[math.sqrt(1 / a - 1) for a in products],
            start_share=[beta * math.sqrt(b) / (1 - a) for beta, a, b in zip(betas, products, before, strict=True)],
            state_share=[
                (1 - b) * math.sqrt(1 - beta) / (1 - a) for beta, a, b in zip(betas, products, before, strict=True)
            ],
            deviation=[math.sqrt(v) if t else 0.0 for t, v in enumerate(variances)],
        )


class DenoiserLayer(nn.Module):
    """One residual layer of the denoiser.

    `Denoiser.additions` computes the terms of time and condition, for all steps at once.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(size)
        self.input = nn.Linear(size, size)
        self.time = nn.Linear(size, size)
        self.condition = nn.Linear(size, size)
        self.output_norm = nn.LayerNorm(size)
        self.output = nn.Linear(size, size)
        self.shortcut = nn.Linear(size, size)

    def forward(self, x: Tensor, added: Tensor) -> Tensor:
        """x and added (..., K, D) -> (..., K, D)."""
        h = self.input(F.silu(self.input_norm(x))) + added
        out: Tensor = self.output(F.silu(self.output_norm(h))) + self.shortcut(x)
        return out


class Denoiser(nn.Module):
    """f(x_t, t, c), which predicts the noise in x_t. The table `time_codes` is frozen and saved with the weights."""

    def __init__(self, steps: int, size: int, layers: int) -> None:
        super().__init__()
        self.register_buffer("time_codes", sinusoid(steps, size))
        self.time_codes: Tensor
        self.time_input = nn.Linear(size, size)
        self.time_output = nn.Linear(size, size)
        self.condition_norm = nn.LayerNorm(size)
        self.condition_output = nn.Linear(size, size)
        self.layers: Sequence[DenoiserLayer] = nn.ModuleList(DenoiserLayer(size) for _ in range(layers))  # type: ignore[assignment]
        self.output = nn.Linear(size, size)

    def additions(self, condition: Tensor) -> list[Tensor]:
        """Return the terms of time and condition for all steps: condition (B, K, D) -> (T, B, K, D) per layer."""
        time = F.silu(self.time_output(F.silu(self.time_input(self.time_codes))))[:, None, None]
        code = F.silu(self.condition_output(F.relu(self.condition_norm(condition))))
        return [layer.time(time) + layer.condition(code) for layer in self.layers]

    def forward(self, x: Tensor, additions: list[Tensor]) -> Tensor:
        """x (..., K, D) and `additions` of the same step or steps, (..., K, D) per layer -> (..., K, D)."""
        h = x
        for layer, added in zip(self.layers, additions, strict=True):
            h = layer(h, added)
        error: Tensor = self.output(h + x)
        return error


class TruncatedDiffusion(nn.Module):
    """Reverse diffusion from noise to registers in T steps.

    The same noise is the start, is added in every step and is what the denoiser predicts. In the paper it is mu, so
    nothing is random.
    """

    def __init__(self, steps: int, size: int, layers: int) -> None:
        super().__init__()
        self.schedule = DiffusionSchedule.cosine(steps)
        self.denoiser = Denoiser(steps, size, layers)
        scales = torch.tensor([self.schedule.start_scale, self.schedule.noise_scale])
        self.register_buffer("forward_scales", scales[:, :, None, None, None], persistent=False)
        self.forward_scales: Tensor  # (2, T, 1, 1, 1)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Run the reverse process: noise (B, J, D), condition (B, K, D) -> registers (B, K, D)."""
        schedule = self.schedule
        additions = [added.unbind(0) for added in self.denoiser.additions(condition)]
        x: Tensor = noise.expand_as(condition)
        for t in reversed(range(len(schedule.deviation))):
            error = self.denoiser(x, [added[t] for added in additions])
            start = (schedule.state_inverse[t] * x - schedule.error_inverse[t] * error).clamp(-1, 1)
            x = schedule.start_share[t] * start + schedule.state_share[t] * x + schedule.deviation[t] * noise
        return x

    def errors(self, start: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        """Return the mean of (noise - e_t)^2 over T, K and D on the forward process.

        start = x_0 (B, K, D), noise (B, J, D), condition (B, K, D) -> (B,).
        """
        noised = self.forward_scales[0] * start + self.forward_scales[1] * noise  # (T, B, K, D)
        errors: Tensor = noise - self.denoiser(noised, self.denoiser.additions(condition))
        return errors.square().mean((0, 2, 3))
