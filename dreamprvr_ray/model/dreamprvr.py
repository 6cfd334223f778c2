"""DreamPRVR: queries to one vector each, videos to clip and frame tokens that registers have passed through (model page, section 2).

Scores, losses and what crosses between workers are elsewhere. A tiny run:

    model = DreamPRVR(load_experiment("demo").model, video_size=24, text_size=16)
    encoding = model.encode_videos(clips, frames, frame_mask)

B videos, Q queries, L frame tokens (128, or those of a batch's longest video), M clip tokens (32), Lq query tokens, K registers, T diffusion
steps, N branches, D hidden size, Dv and Dt sizes of a video's and a query's features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamprvr_ray.config import CLIPS, FRAMES, QUERY_TOKENS, ModelConfig, TrimFrames
from dreamprvr_ray.model.attention import (
    CrossAttention,
    Dropout,
    PostNormFeedForward,
    SelfAttention,
    StackedLayerNorm,
    StackedLinear,
    additive_mask,
    at_least_float32,
    gaussian_factors,
)
from dreamprvr_ray.model.kernels import compiled as fused
from dreamprvr_ray.model.kernels import cpu
from dreamprvr_ray.model.registers import Condition, TruncatedDiffusion, VariationalSampler

QUERY_GROUPS = 4  # in which the CPU encodes a batch's queries
CLIP_POSITIONS = 128  # rows of the clips' position table; the first 32 are used


@dataclass(frozen=True)
class VideoEncoding:
    """What a batch of videos is turned into."""

    clip_tokens: Tensor  # (B, M, D)
    frame_tokens: Tensor  # (B, L, D), padded rows zero
    frame_mask: Tensor | None  # (B, L) bool: the tokens that may be a query's best; None: all, zero rows too
    registers: Tensor | None  # (B, K, D); this and the rest None where K = 0
    condition: Tensor | None  # (B, K, D)
    mu: Tensor | None  # (B, D)
    logvar: Tensor | None  # (B, D)


class InputLayer(nn.Module):
    """LayerNorm -> dropout -> Linear -> ReLU."""

    compiled = False

    def __init__(self, inputs: int, size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.dropout = Dropout(dropout)
        self.project = nn.Linear(inputs, size)

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) -> (.., D)."""
        if cpu.supports(x):
            keep = self.dropout.kept if self.training else 65536
            tensors = self.norm.weight, self.norm.bias, self.project.weight, self.project.bias
            on_cpu: Tensor = cpu.DroppedLinear.apply(x, cpu.product_type(x), keep, *tensors)
            return on_cpu
        if self.compiled and self.training and fused.supports(x):
            x = fused.normed_and_dropped(x, self.norm.weight, self.norm.bias, self.dropout.keep)
        else:
            x = self.dropout(self.norm(x))
        projected: Tensor = self.project(x)
        return projected.relu_()


class TokenInput(nn.Module):
    """The input layer of queries, clips or frames: features to tokens that know their position."""

    def __init__(self, inputs: int, size: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.layer = InputLayer(inputs, size, dropout)
        self.positions = nn.Parameter(torch.empty(positions, size))
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, in) -> (B, L, D). Raises `ValueError` for features of another size."""
        if features.shape[-1] != self.layer.project.in_features:
            raise ValueError(
                f"features have {features.shape[-1]} entries, this model was made for {self.layer.project.in_features}"
            )
        tokens: Tensor = self.dropout(self.norm(self.layer(features) + self.positions[: features.shape[1]]))
        return tokens


class FusionBlock(nn.Module):
    """The register-augmented Gaussian attention branches over clips or frames, and their weighted sum at each position."""

    compiled = False

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.temperature = config.fusion_temperature
        self.register_input = InputLayer(size, size, config.dropout) if config.registers else None
        self.branches = SelfAttention(config.branches, size, config.heads, config.dropout)
        factors = gaussian_factors(config.branches, length, config.registers, size // config.heads)
        self.register_buffer("factors", factors, persistent=False)
        self.factors: Tensor  # (N, P, P + K), P the most positions that there can be
        self.summary = CrossAttention(size, config.heads, config.dropout)
        self.weight_hidden = nn.Linear(size, size)
        self.weight_output = nn.Linear(size, length)
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: Tensor, registers: Tensor | None, mask: Tensor | None, trimmed: bool = False) -> Tensor:
        """tokens (B, L, D), registers (B, K, D), mask (B, L) bool, None where no position is padded -> (B, L, D).

        `trimmed`: L may be less than P, and padding takes no part in the mean either.
        """
        length = tokens.shape[1]
        if self.register_input is not None and registers is not None:
            registers = self.register_input(registers)
        token_mask = None if mask is None else additive_mask(mask)
        key_mask = token_mask
        if token_mask is not None and registers is not None:
            key_mask = torch.cat([token_mask, token_mask.new_zeros(registers.shape[:2])], dim=1)
        outputs = self.branches(tokens, registers, self._factors(length), key_mask)  # (N, B, L, D)
        branches, videos, _, size = outputs.shape
        precise = torch.promote_types(outputs.dtype, torch.float32)
        if trimmed and mask is not None:
            overall = outputs.mean(0, dtype=precise).masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(
                1, keepdim=True
            )
        else:
            overall = outputs.mean((0, 2), dtype=precise)
        overall = overall.expand(branches, videos, size).reshape(branches * videos, 1, size)
        tiled_mask = None if token_mask is None else token_mask.repeat(branches, 1)
        summary = self.summary(overall, outputs.flatten(0, 1), tiled_mask).view(branches, videos, size)
        hidden = self.dropout(self.weight_hidden(summary).relu_())
        preferences = at_least_float32(
            F.linear(hidden, self.weight_output.weight[:length], self.weight_output.bias[:length])
        )  # (N, B, L)
        if self.compiled and self.training and fused.supports(outputs):
            summed = fused.weighted_sum(preferences / self.temperature, outputs)
        else:
            summed = (torch.softmax(preferences / self.temperature, dim=0).unsqueeze(-1) * outputs).sum(0)
        return summed if mask is None else summed.masked_fill(~mask.unsqueeze(-1), 0)

    def _factors(self, length: int) -> Tensor:
        """(N, L, L + K): the first L rows and columns, and the registers' columns."""
        positions = self.factors.shape[1]
        if length == positions:
            return self.factors
        return torch.cat([self.factors[:, :length, :length], self.factors[:, :length, positions:]], dim=2)


class DreamPRVR(nn.Module):
    """The network. Initialised (page, section 4) from torch's global generator, which the caller seeds.

    Raises `ValueError` where the input layers are to start alike and features of videos and queries differ in size.
    """

    def __init__(self, config: ModelConfig, video_size: int, text_size: int, trim_frames: TrimFrames = "exact") -> None:
        super().__init__()
        size, heads, dropout = config.hidden_size, config.heads, config.dropout
        self.config, self.trimmed = config, trim_frames == "batch"
        self.query_input = TokenInput(text_size, size, QUERY_TOKENS, config.input_dropout)
        self.clip_input = TokenInput(video_size, size, CLIP_POSITIONS, config.input_dropout)
        self.frame_input = TokenInput(video_size, size, FRAMES, config.input_dropout)
        self.query_attention = SelfAttention(1, size, heads, dropout)
        self.query_pooling = nn.Linear(size, 1, bias=False)
        self.clip_fusion = FusionBlock(config, CLIPS)
        self.frame_fusion = FusionBlock(config, FRAMES)
        if config.registers:
            self.video_context = SelfAttention(1, size, heads, dropout)
            self.condition = Condition(config.registers, size, heads, dropout)
            self.sampler = VariationalSampler(CLIPS, size)
            self.diffusion = TruncatedDiffusion(config.diffusion_steps, size, config.denoiser_layers)
        self._initialise()
        if config.initialization == "aligned":
            self._align_inputs()

    def encode_queries(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (Q, Lq, Dt) with Lq <= 30, mask (Q, Lq) bool, true at a query's first tokens -> (Q, D)."""
        if not cpu.supports(tokens) or len(tokens) < 2 * QUERY_GROUPS:
            return self._encode_queries(tokens, mask)
        # Half of a batch's token rows are padding: on the CPU, queries of like lengths are encoded together.
        lengths, order = mask.sum(1).sort()
        ends = [int(part[-1]) for part in lengths.chunk(QUERY_GROUPS)]
        encoded = [
            self._encode_queries(tokens[part, :end], mask[part, :end])
            for part, end in zip(order.chunk(QUERY_GROUPS), ends, strict=True)
        ]
        return torch.cat(encoded)[order.argsort()]

    def _encode_queries(self, tokens: Tensor, mask: Tensor) -> Tensor:
        key_mask = additive_mask(mask)
        encoded: Tensor = self.query_attention(self.query_input(tokens), None, None, key_mask)[0]
        scores = at_least_float32(self.query_pooling(encoded).squeeze(-1)).masked_fill(~mask, -1e10)
        return (torch.softmax(scores, dim=1).unsqueeze(-1) * encoded).sum(1)

    def encode_videos(self, clips: Tensor, frames: Tensor, frame_mask: Tensor) -> VideoEncoding:
        """clips (B, M, Dv), frames (B, L, Dv), frame_mask (B, L) bool, true at frames; L is 128 unless frames are trimmed."""
        clip_tokens = self.clip_input(clips)
        # Padded rows take part in a video's mean over positions: whatever they hold, they count as zero rows.
        if (
            not cpu.supports(frames) or frames[~frame_mask].any()
        ):  # the CPU spares itself a copy of all features; a GPU would have to wait
            frames = frames.masked_fill(~frame_mask.unsqueeze(-1), 0)
        frame_tokens = self.frame_input(frames)
        registers = condition = mu = logvar = None
        if self.config.registers:
            context = self.video_context(clip_tokens, None, None, None)[0]
            condition = self.condition(context)
            with torch.autocast(context.device.type, enabled=False):
                condition = condition.to(context.dtype)
                mu, logvar = self.sampler(context)
                registers = self.diffusion(mu, condition)
        return VideoEncoding(
            clip_tokens=self.clip_fusion(clip_tokens, registers, None),
            frame_tokens=self.frame_fusion(frame_tokens, registers, frame_mask, self.trimmed),
            frame_mask=frame_mask if self.trimmed else None,
            registers=registers,
            condition=condition,
            mu=mu,
            logvar=logvar,
        )

    def denoising_errors(self, encoding: VideoEncoding, start: Tensor) -> Tensor:
        """How far the denoiser is from mu, averaged over all T steps: start = x_0 (B, K, D) -> (B,)."""
        assert encoding.mu is not None and encoding.condition is not None, "a model without registers has no denoiser"
        with torch.autocast(start.device.type, enabled=False):
            errors: Tensor = self.diffusion.errors(start.to(encoding.mu.dtype), encoding.mu, encoding.condition)
        return errors

    def compile_chains(self, compiled: bool) -> None:
        """Whether training on a GPU runs the chains between matrix products as compiled kernels (`fused`), which takes half a minute once."""
        for module in self.modules():
            if isinstance(module, (FusionBlock, InputLayer, PostNormFeedForward, SelfAttention)):
                module.compiled = compiled

    def gradient_parts(self) -> dict[str, int]:
        """By parameter name, how many parts its leading axis stacks that are clipped and normed each by itself (1: the whole)."""
        parts = {name: 1 for name, _ in self.named_parameters()}
        for path, module in self.named_modules():
            if isinstance(module, (StackedLinear, StackedLayerNorm)):
                parts |= {f"{path}.{name}": len(parameter) for name, parameter in module.named_parameters()}
        return parts

    def undecayed(self) -> set[str]:
        """Names of the parameters without weight decay: every bias, and the norms of input layers and position embeddings."""
        names = {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1].startswith("bias")}
        inputs = [path for path, module in self.named_modules() if isinstance(module, (InputLayer, TokenInput))]
        return names | {f"{path}.norm.weight" for path in inputs}

    @torch.no_grad()
    def _initialise(self) -> None:
        """Section 4 of the page: N(0, 0.02) for linear layers and position tables, 0 for biases, N(0, 1) for the learned tokens."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, StackedLinear)):
                module.weight.normal_(0, 0.02)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, TokenInput):
                module.positions.normal_(0, 0.02)
            elif isinstance(module, Condition):
                module.tokens.normal_(0, 1)
            elif isinstance(module, nn.GRU):
                for name, parameter in module.named_parameters():
                    if name.startswith("weight_ih"):
                        nn.init.xavier_uniform_(parameter)
                    elif name.startswith("weight_hh"):
                        nn.init.orthogonal_(parameter)
                    else:
                        parameter.zero_()

    @torch.no_grad()
    def _align_inputs(self) -> None:
        """Starts queries, clips and frames from one projection, orthogonal so that it keeps their cosines as well as D allows."""
        first, *others = (
            tokens.layer.project.weight for tokens in (self.query_input, self.clip_input, self.frame_input)
        )
        if any(weight.shape != first.shape for weight in others):
            raise ValueError(
                f"features of {first.shape[1]} and {others[0].shape[1]} entries cannot start from one projection"
            )
        nn.init.orthogonal_(first)
        for weight in others:
            weight.copy_(first)
