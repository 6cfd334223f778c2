"""A reference implementation of docs/model.md: model, losses and optimiser, written for clarity and not for speed.

It computes branch by branch and diffusion step by step, uses the authors' parameter names and torch's dropout, and
shares no computation with `dreamprvr_ray/model`. `python -m benchmarks.step --against plain` measures how much faster
the package is.

Shapes, in this file: B videos, Q queries, L tokens, S keys, R query rows, D hidden size, d = D / heads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamprvr_ray.config_sections import LossConfig, ModelConfig, OptimizerConfig
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.model.authors_names import authors_names
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training import losses
from dreamprvr_ray.training.objective import StepRandomness

Weights = Mapping[str, Tensor]  # by the authors' names


@dataclass(frozen=True)
class ReferenceEncoding:
    """The counterpart of `dreamprvr.VideoEncoding`."""

    clip_tokens: Tensor
    frame_tokens: Tensor
    registers: Tensor | None
    condition: Tensor | None
    noise: Tensor | None
    mu: Tensor | None
    logvar: Tensor | None


def reference_weights(model: DreamPRVR) -> dict[str, Tensor]:
    """Return the model's parameters and buffers by the authors' names. Gradients reach the model's parameters."""
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    return {
        theirs: tensors[ours] if index is None else tensors[ours][index]
        for theirs, (ours, index) in authors_names(model.config).items()
    }


def reference_losses(
    weights: Weights, model: ModelConfig, config: LossConfig, batch: Batch, randomness: StepRandomness, hard: bool
) -> dict[str, Tensor]:
    """Return the losses of section 3 by name, with their weighted sum as `total`.

    The losses of score matrices come from `training/losses.py`; tests/training/test_losses.py compares those with
    loops.
    """
    videos = len(batch.clips)
    queries = encode_queries(weights, model, batch.tokens, batch.token_mask)
    encoding = encode_videos(weights, model, batch.clips, batch.frames, batch.frame_mask, randomness.start_noise)
    clip_cosine, clip_dot = best_scores(queries, encoding.clip_tokens)
    frame_cosine, frame_dot = best_scores(queries, encoding.frame_tokens)
    own = batch.owner.unsqueeze(1) == torch.arange(videos)
    draws, pool = randomness.negatives, config.hard_negative_pool if hard else None
    cosines = F.normalize(queries, dim=1) @ F.normalize(queries, dim=1).T
    values = {
        "clip_nce": losses.nce(clip_dot, own),
        "clip_triplet": losses.triplet(clip_cosine, own, config.margin, draws.clip_video, draws.clip_query, pool),
        "frame_nce": losses.nce(frame_dot, own),
        "frame_triplet": losses.triplet(frame_cosine, own, config.margin, draws.frame_video, draws.frame_query, pool),
        "diversity": losses.diversity(
            cosines, batch.owner, config.diversity_margin, config.diversity_scale, config.diversity_focus
        ),
        "similarity": losses.similarity(cosines, batch.owner, config.similarity_temperature),
        "variational": torch.zeros(()),
        "denoising": torch.zeros(()),
    }
    if encoding.mu is not None and encoding.logvar is not None:
        mu, logvar = encoding.mu, encoding.logvar
        values["variational"] = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum() / videos
    if encoding.noise is not None and encoding.condition is not None:
        starts = []
        for video in range(videos):
            row = queries[own[:, video]].mean(0)
            if not config.textual_perturbation:
                starts.append(torch.stack([row] * model.registers))
                continue
            mean, deviation = row.mean().detach(), row.std().detach()
            standardised = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
            alpha = 1 + 0.1 * deviation * randomness.alpha_noise[video].to(row)
            beta = mean + 0.1 * deviation * randomness.beta_noise[video].to(row)
            starts.append(alpha * standardised + beta)
        start = torch.stack(starts)
        values["denoising"] = denoising_errors(weights, model, start, encoding.noise, encoding.condition).mean()
    weight = config.weights
    values["total"] = (
        weight.clip_nce * values["clip_nce"]
        + values["clip_triplet"]
        + weight.frame_nce * values["frame_nce"]
        + values["frame_triplet"]
        + weight.diversity * values["diversity"]
        + weight.similarity * values["similarity"]
        + weight.variational * values["variational"]
        + weight.denoising * values["denoising"]
    )
    return values


def best_scores(queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest cosine and dot product over each video's tokens: (Q, D), (B, L, D) -> two of (Q, B)."""
    products = torch.einsum("qd,bld->qbl", queries, tokens)
    cosines = torch.einsum("qd,bld->qbl", F.normalize(queries, dim=-1), F.normalize(tokens, dim=-1))
    return cosines.amax(2), products.amax(2)


def best_scores_by_loop(queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `best_scores`, pair by pair. A norm of zero gives a cosine of zero."""
    cosines, dots = [], []
    for query in queries:
        for video in tokens:
            products, norms = video @ query, video.norm(dim=1) * query.norm()
            cosines.append(torch.where(norms > 0, products / norms.where(norms > 0, 1.0), 0.0).max())
            dots.append(products.max())
    shape = len(queries), len(tokens)
    return torch.stack(cosines).view(shape), torch.stack(dots).view(shape)


class ReferenceAdam:
    """The optimiser of section 4, one of the authors' tensors after the other."""

    def __init__(self, weights: Weights, undecayed: set[str], config: OptimizerConfig, total_steps: int) -> None:
        self._weights, self._undecayed, self._config, self._total = weights, undecayed, config, total_steps
        self._means, self._squares = (
            {name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2)
        )
        self._step = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Update the weights that have a gradient, in place."""
        config, progress = self._config, self._step / self._total
        warm = config.warmup_fraction
        rate = config.learning_rate * (progress / warm if progress < warm else (1 - progress) / (1 - warm))
        for name, gradient in gradients.items():
            weight, mean, square = self._weights[name], self._means[name], self._squares[name]
            gradient = gradient * (1 / (gradient.norm() + 1e-6)).clamp(max=1)  # clipped to norm 1
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            update = mean / (square.sqrt() + 1e-6)
            if name not in self._undecayed:
                update += config.weight_decay * weight
            weight -= rate * update
        self._step += 1


def encode_queries(weights: Weights, config: ModelConfig, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the query embeddings: tokens (Q, L, features), mask (Q, L) bool -> (Q, D)."""
    x = _input(weights, "query", tokens, config.input_dropout)
    x = attention_block(weights, "query_encoder", config, x, x, None, mask[:, None, :].expand(-1, x.shape[1], -1))
    scores = F.linear(x, weights["modular_vector_mapping.weight"]).squeeze(-1)
    pooled = [torch.softmax(score[own], 0) @ row[own] for score, row, own in zip(scores, x, mask, strict=True)]
    return torch.stack(pooled)


def encode_videos(
    weights: Weights,
    config: ModelConfig,
    clips: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    start_noise: Tensor | None = None,
) -> ReferenceEncoding:
    """Encode clips (B, 32, features) and frames (B, L, features) with frame_mask (B, L) bool.

    `start_noise` (B, K, D) is for a diffusion that starts from noise.
    """
    clip_tokens, frame_tokens = (
        _input(weights, kind, rows, config.input_dropout) for kind, rows in (("clip", clips), ("frame", frames))
    )
    registers = condition = noise = mu = logvar = None
    if config.registers:
        context = attention_block(weights, "mean_clip_encoder", config, clip_tokens, clip_tokens, None, None)
    if config.registers and config.register_source == "pooling":
        length, parts = context.shape[1], config.registers
        registers = torch.stack(
            [context[:, k * length // parts : -(-(k + 1) * length // parts)].mean(1) for k in range(parts)], 1
        )
    elif config.registers:
        learned = weights["video_qformer.query_tokens"].expand(len(clips), -1, -1)
        condition = attention_block(weights, "video_qformer.cross_attention", config, learned, context, None, None)
        if config.diffusion_start == "noise":
            assert start_noise is not None
            noise = start_noise.to(condition)
        else:
            mu, logvar = _sample(weights, context)
            noise = mu.unsqueeze(1)
        registers = diffuse(weights, config, noise, condition)
    clip_mask = torch.ones(clip_tokens.shape[:2], dtype=torch.bool)
    return ReferenceEncoding(
        clip_tokens=_fuse(weights, "clip_encoder", config, clip_tokens, registers, clip_mask),
        frame_tokens=_fuse(weights, "frame_encoder", config, frame_tokens, registers, frame_mask),
        registers=registers,
        condition=condition,
        noise=noise,
        mu=mu,
        logvar=logvar,
    )


def denoising_errors(weights: Weights, config: ModelConfig, start: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
    """Return each video's mean of (noise - e_t)^2 over steps, registers and channels, (B,).

    start is x_0 (B, K, D); noise is (B, K, D) or, the same for all registers, (B, 1, D).
    """
    levels, _ = schedule(config.diffusion_steps)
    noise = noise.expand_as(start)
    errors = []
    for t, level in enumerate(levels):
        x = math.sqrt(level) * start + math.sqrt(1 - level) * noise
        errors.append((noise - _denoise(weights, config, x, t, condition)).square().mean((1, 2)))
    return torch.stack(errors).mean(0)


def schedule(steps: int) -> tuple[list[float], list[float]]:
    """Return abar_t and beta_t of the cosine schedule for every step."""
    levels = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    betas = [min(max(1 - after / before, 0), 0.999) for before, after in itertools.pairwise(levels)]
    products, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        products.append(product)
    return products, betas


def diffuse(weights: Weights, config: ModelConfig, noise: Tensor, condition: Tensor) -> Tensor:
    """Run the reverse process: noise (B, K, D) or (B, 1, D), condition (B, K, D) -> registers (B, K, D)."""
    levels, betas = schedule(config.diffusion_steps)
    noise = noise.expand_as(condition)
    x = noise
    for t in reversed(range(config.diffusion_steps)):
        before = levels[t - 1] if t else 1.0
        error = _denoise(weights, config, x, t, condition)
        start = (math.sqrt(1 / levels[t]) * x - math.sqrt(1 / levels[t] - 1) * error).clamp(-1, 1)
        x = (
            betas[t] * math.sqrt(before) / (1 - levels[t]) * start
            + (1 - before) * math.sqrt(1 - betas[t]) / (1 - levels[t]) * x
        )
        if t > 0:
            x = x + math.sqrt(betas[t] * (1 - before) / (1 - levels[t])) * noise
    return x


@cache
def gaussian(width: float, length: int) -> Tensor:
    """Return G_w (L, L), computed entry by entry."""
    s = max(width, 0.01) / 9
    square = [
        [math.exp(-((j / (length - 1) - i / length) ** 2) / (2 * s**2)) for j in range(length)] for i in range(length)
    ]
    return torch.tensor([[entry / max(row) for entry in row] for row in square], dtype=torch.float64)


def attention_block(
    weights: Weights,
    name: str,
    config: ModelConfig,
    queries: Tensor,
    tokens: Tensor,
    factors: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Return GAB or XA: queries (B, R, D), tokens (B, S, D), factors (R, S), mask (B, R, S) bool -> (B, R, D)."""
    (videos, rows, size), keys, heads = queries.shape, tokens.shape[1], config.heads
    d = size // heads

    def split(x: Tensor, part: str, length: int) -> Tensor:
        return _linear(weights, f"{name}.self.{part}", x).view(videos, length, heads, d).transpose(1, 2)

    q, k, v = split(queries, "query", rows), split(tokens, "key", keys), split(tokens, "value", keys)
    scores = q @ k.transpose(2, 3) / math.sqrt(d)
    if factors is not None:
        scores = scores * factors.to(scores)
    if mask is not None:
        scores = scores + torch.where(mask, 0.0, -10000.0).to(scores)[:, None]
    attended = (F.dropout(torch.softmax(scores, -1), config.dropout) @ v).transpose(1, 2).reshape(videos, rows, size)
    x = _norm(weights, f"{name}.norm1", queries + F.dropout(attended, config.dropout))
    inner = F.dropout(F.relu(_linear(weights, f"{name}.output.layer1", x)), config.dropout)
    return _norm(
        weights, f"{name}.norm2", x + F.dropout(_linear(weights, f"{name}.output.layer2", inner), config.dropout)
    )


def _fuse(
    weights: Weights, name: str, config: ModelConfig, tokens: Tensor, registers: Tensor | None, mask: Tensor
) -> Tensor:
    (videos, length, _), k = tokens.shape, config.registers
    positions = len(weights[f"{name}.layer2.weight"])  # trimmed videos of one length use the first `length` of these
    x = tokens
    visible = torch.zeros(videos, length + k, length + k, dtype=torch.bool)
    visible[:, :, :length] = mask[:, None, :]  # tokens and registers see tokens
    visible[:, :length, length:] = True  # only tokens see registers
    if registers is not None:
        normed = F.dropout(_norm(weights, f"{name}.noise_input_layer.LayerNorm", registers), config.dropout)
        x = torch.cat([tokens, F.relu(_linear(weights, f"{name}.noise_input_layer.net.1", normed))], 1)
    outputs = []
    for branch in range(config.branches):
        factors = torch.ones(length + k, length + k, dtype=torch.float64)
        if branch:
            factors[:length, :length] = gaussian(2.0 ** (branch - 3), positions)[:length, :length]
        outputs.append(attention_block(weights, f"{name}.e_attns.{branch}", config, x, x, factors, visible)[:, :length])
    overall = torch.stack(outputs).mean((0, 2)).unsqueeze(1)  # (B, 1, D)
    preferences = []
    for output in outputs:
        summary = attention_block(weights, f"{name}.ca", config, overall, output, None, mask[:, None, :])
        hidden = F.dropout(F.relu(_linear(weights, f"{name}.layer1", summary)), config.dropout)
        preferences.append(_linear(weights, f"{name}.layer2", hidden).squeeze(1)[:, :length])
    shares = torch.softmax(torch.stack(preferences) / config.fusion_temperature, 0)
    fused = torch.zeros_like(tokens)
    for share, output in zip(shares, outputs, strict=True):
        fused = fused + share.unsqueeze(-1) * output
    return fused * mask.unsqueeze(-1)


def _sample(weights: Weights, context: Tensor) -> tuple[Tensor, Tensor]:
    name = "video_probabilistic_variational_sampler"
    pooled = sorted_pooling(weights, f"{name}.gpo", context)

    def attentive(net: str) -> Tensor:
        hidden = torch.tanh(context @ weights[f"{name}.{net}.attention.w_1.weight"].T)
        shares = torch.softmax(hidden @ weights[f"{name}.{net}.attention.w_2.weight"].T, 1)
        return (shares * context).sum(1)

    gate = torch.sigmoid(_linear(weights, f"{name}.pie_net_video.fc", attentive("pie_net_video")))
    mu = _norm(weights, f"{name}.pie_net_video.layer_norm", pooled + gate)
    logvar = _linear(weights, f"{name}.uncertain_net_video.fc", attentive("uncertain_net_video"))
    return mu / mu.norm(dim=1, keepdim=True), logvar + _linear(weights, f"{name}.uncertain_net_video.fc2", pooled)


def sorted_pooling(weights: Weights, name: str, tokens: Tensor) -> Tensor:
    """Pool tokens (B, M, D) to (B, D) as the variational sampler does, with the GRU written out."""
    positions = tokens.shape[1]
    codes = torch.tensor(
        [
            [(math.cos if i % 2 else math.sin)(m * math.exp(-math.log(10000) * (i - i % 2) / 32)) for i in range(32)]
            for m in range(positions)
        ]
    ).to(tokens)

    def run(suffix: str, order: list[int]) -> dict[int, Tensor]:
        state, states = torch.zeros(32).to(tokens), {}
        for m in order:
            from_input = (
                weights[f"{name}.gru.weight_ih_l0{suffix}"] @ codes[m] + weights[f"{name}.gru.bias_ih_l0{suffix}"]
            )
            from_state = weights[f"{name}.gru.weight_hh_l0{suffix}"] @ state + weights[f"{name}.gru.bias_hh_l0{suffix}"]
            (ri, zi, ni), (rh, zh, nh) = from_input.chunk(3), from_state.chunk(3)
            reset, update = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
            state = (1 - update) * torch.tanh(ni + reset * nh) + update * state
            states[m] = state
        return states

    forward, backward = run("", list(range(positions))), run("_reverse", list(reversed(range(positions))))
    scores = torch.stack(
        [(weights[f"{name}.linear.weight"] @ ((forward[m] + backward[m]) / 2)).squeeze() for m in range(positions)]
    )
    shares = torch.softmax(scores / 0.1, 0)
    ordered = tokens.sort(1, descending=True).values
    return sum(shares[m] * ordered[:, m] for m in range(positions))  # type: ignore[return-value]


def _denoise(weights: Weights, config: ModelConfig, x: Tensor, t: int, condition: Tensor) -> Tensor:
    name = "diffusion_mlp"
    time = weights[f"{name}.time_embedding.timembedding.0.weight"][t]
    time = _linear(weights, f"{name}.time_embedding.timembedding.1", time)
    time = _linear(weights, f"{name}.time_embedding.timembedding.3", F.silu(time))
    code = _linear(weights, f"{name}.cond_embedding.2", F.relu(_norm(weights, f"{name}.cond_embedding.0", condition)))
    h = x
    for layer in range(config.denoiser_layers):
        part = f"{name}.layers.{layer}"
        inner = _linear(weights, f"{part}.blcok_in.2", F.silu(_norm(weights, f"{part}.blcok_in.0", h)))
        inner = (
            inner
            + _linear(weights, f"{part}.temb_proj.1", F.silu(time))
            + _linear(weights, f"{part}.cond_proj.1", F.silu(code))
        )
        inner = _linear(weights, f"{part}.blcok_out.3", F.silu(_norm(weights, f"{part}.blcok_out.0", inner)))
        h = inner + _linear(weights, f"{part}.short_cut", h)
    return _linear(weights, f"{name}.short_cut", h + x)


def _input(weights: Weights, kind: str, features: Tensor, dropout: float) -> Tensor:
    normed = F.dropout(_norm(weights, f"{kind}_input_proj.LayerNorm", features), dropout)
    x = F.relu(_linear(weights, f"{kind}_input_proj.net.1", normed))
    x = x + weights[f"{kind}_pos_embed.position_embeddings.weight"][: x.shape[1]]
    return F.dropout(_norm(weights, f"{kind}_pos_embed.LayerNorm", x), dropout)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)
