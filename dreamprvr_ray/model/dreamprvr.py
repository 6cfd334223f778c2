"""The DreamPRVR network (docs/model.md, section 2).

It encodes a query as one vector, and a video as clip and frame tokens fused with registers. Scores are in `scoring.py`,
losses in `training/losses.py`, communication between workers in `distributed.py`. An example that runs on a CPU in
seconds:

    model = DreamPRVR(load_experiment("demo").model, video_size=24, text_size=16)
    frame_mask = torch.ones(2, 128, dtype=torch.bool)
    encoding = model.encode_videos(torch.randn(2, 32, 24), torch.randn(2, 128, 24), frame_mask)

Shapes, in this file:
    B  videos                     Q  queries                     N  attention branches
    M  clip tokens (32)           J  query tokens (at most 30)   D  hidden size
    K  registers                  T  diffusion steps             I  input size of a layer
    V  features of a frame        U  features of a query token   P  positions of a fusion block (32 or 128)
    L  frame tokens: 128, or those of the batch's longest video if frames are trimmed
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS, ModelConfig, TrimFrames
from dreamprvr_ray.model import kernels
from dreamprvr_ray.model.attention import (
    CrossAttention,
    Dropout,
    SelfAttention,
    StackedLayerNorm,
    StackedLinear,
    additive_mask,
    at_least_float32,
    gaussian_factors,
)
from dreamprvr_ray.model.registers import (
    Condition,
    PartPooling,
    TruncatedDiffusion,
    VariationalSampler,
    fixed_noise,
)

CLIP_POSITIONS = 128  # rows of the clips' position table; the first 32 are used


@dataclass(frozen=True)
class VideoEncoding:
    """The encoding of a batch of videos.

    The fields from `registers` on are None for a model without registers (K = 0). If its registers are pooled, those
    after them are None; if its diffusion starts from noise, mu and logvar are.
    """

    clip_tokens: Tensor  # (B, M, D)
    frame_tokens: Tensor  # (B, L, D), padded rows zero
    frame_mask: (
        Tensor | None
    )  # (B, L) bool: the frame tokens that scores may use; None: all of them, zero rows included
    registers: Tensor | None  # (B, K, D)
    condition: Tensor | None  # (B, K, D)
    noise: Tensor | None  # of the diffusion: mu as (B, 1, D), or (B, K, D)
    mu: Tensor | None  # (B, D)
    logvar: Tensor | None  # (B, D)


@dataclass(frozen=True)
class _Registers:
    """The registers of a batch of videos and what they were made from, as in `VideoEncoding`."""

    registers: Tensor | None = None
    condition: Tensor | None = None
    noise: Tensor | None = None
    mu: Tensor | None = None
    logvar: Tensor | None = None


class InputLayer(kernels.Accelerated):
    """LayerNorm -> dropout -> Linear -> ReLU."""

    def __init__(self, inputs: int, size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.dropout = Dropout(dropout)
        self.project = nn.Linear(inputs, size)

    @kernels.input_layer
    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., D)."""
        projected: Tensor = self.project(self.dropout(self.norm(x)))
        return projected.relu_()


class TokenInput(nn.Module):
    """The input layer of queries, clips or frames, with learned position embeddings."""

    def __init__(self, inputs: int, size: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.layer = InputLayer(inputs, size, dropout)
        self.positions = nn.Parameter(torch.empty(positions, size))
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, L, I) -> tokens (B, L, D). Raises `ValueError` if the features have another size."""
        if features.shape[-1] != self.layer.project.in_features:
            raise ValueError(
                f"features have size {features.shape[-1]}; this model takes {self.layer.project.in_features}"
            )
        tokens: Tensor = self.dropout(self.norm(self.layer(features) + self.positions[: features.shape[1]]))
        return tokens


class FusionBlock(kernels.Accelerated):
    """The register-augmented fusion block of clips or frames.

    N Gaussian attention branches run over the tokens and registers; each position gets a weighted sum of their outputs.
    """

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.temperature = config.fusion_temperature
        self.register_input = InputLayer(size, size, config.dropout) if config.registers else None
        self.branches = SelfAttention(config.branches, size, config.heads, config.dropout)
        factors = gaussian_factors(config.branches, length, config.registers, size // config.heads)
        self.register_buffer("factors", factors, persistent=False)
        self.factors: Tensor  # (N, P, P + K)
        self.summary = CrossAttention(size, config.heads, config.dropout)
        self.weight_hidden = nn.Linear(size, size)
        self.weight_output = nn.Linear(size, length)
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: Tensor, registers: Tensor | None, mask: Tensor | None, trimmed: bool = False) -> Tensor:
        """Return the fused tokens (B, L, D), padded rows zero.

        tokens (B, L, D), registers (B, K, D), mask (B, L) bool; None means that no position is padded. L is P unless
        frames are `trimmed`; then padding is also excluded from the mean over positions.
        """
        if self.register_input is not None and registers is not None:
            registers = self.register_input(registers)
        token_mask = None if mask is None else additive_mask(mask)
        key_mask = token_mask
        if token_mask is not None and registers is not None:
            key_mask = torch.cat([token_mask, token_mask.new_zeros(registers.shape[:2])], dim=1)
        outputs = self.branches(tokens, registers, self._factors(tokens.shape[1]), key_mask)  # (N, B, L, D)
        mean = self._mean(outputs, mask if trimmed else None)
        fused = self._weighted_sum(outputs, self._preferences(outputs, mean, token_mask))
        return fused if mask is None else fused.masked_fill(~mask.unsqueeze(-1), 0)

    def _factors(self, length: int) -> Tensor:
        """Return the factors of the first L rows and columns and of the registers' columns: (N, L, L + K)."""
        positions = self.factors.shape[1]
        if length == positions:
            return self.factors
        return torch.cat([self.factors[:, :length, :length], self.factors[:, :length, positions:]], dim=2)

    def _mean(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean over branches and positions (r in the specification), in float32 or better.

        outputs (N, B, L, D), mask (B, L) bool or None -> (B, D).
        """
        precise = torch.promote_types(outputs.dtype, torch.float32)
        if mask is None:
            return outputs.mean((0, 2), dtype=precise)
        return outputs.mean(0, dtype=precise).masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True)

    def _preferences(self, outputs: Tensor, mean: Tensor, token_mask: Tensor | None) -> Tensor:
        """Return the logits z_g of the fusion weights, (N, B, L), in float32 or better.

        outputs (N, B, L, D), mean (B, D), token_mask (B, L), added to the scores, or None.
        """
        branches, videos, length, size = outputs.shape
        queries = mean.expand(branches, videos, size).reshape(branches * videos, 1, size)
        key_mask = None if token_mask is None else token_mask.repeat(branches, 1)
        summary = self.summary(queries, outputs.flatten(0, 1), key_mask).view(branches, videos, size)
        hidden = self.dropout(self.weight_hidden(summary).relu_())
        return at_least_float32(F.linear(hidden, self.weight_output.weight[:length], self.weight_output.bias[:length]))

    @kernels.weighted_sum
    def _weighted_sum(self, outputs: Tensor, preferences: Tensor) -> Tensor:
        """outputs (N, B, L, D), preferences (N, B, L) -> (B, L, D)."""
        return (torch.softmax(preferences / self.temperature, dim=0).unsqueeze(-1) * outputs).sum(0)


class DreamPRVR(kernels.Accelerated):
    """The network.

    Its initial weights (docs/model.md, section 4) come from torch's global generator, which the caller seeds.

    Raises `ValueError` if `initialization` is "aligned" and `video_size` differs from `text_size`.
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
        if config.registers and config.register_source == "pooling":
            self.pooling = PartPooling(config.registers, CLIPS)
        elif config.registers:
            self.condition = Condition(config.registers, size, heads, dropout)
            if config.diffusion_start == "variational":
                self.sampler = VariationalSampler(CLIPS, size)
            else:
                self.register_buffer("fixed_noise", fixed_noise(config.registers, size), persistent=False)
                self.fixed_noise: Tensor  # (1, K, D)
            self.diffusion = TruncatedDiffusion(config.diffusion_steps, size, config.denoiser_layers)
        self._initialise()
        if config.initialization == "aligned":
            self._align_inputs()

    @kernels.encode_queries
    def encode_queries(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (Q, J, U), mask (Q, J) bool, true at a query's first tokens -> (Q, D)."""
        encoded: Tensor = self.query_attention(self.query_input(tokens), None, None, additive_mask(mask))[0]
        scores = at_least_float32(self.query_pooling(encoded).squeeze(-1)).masked_fill(~mask, -1e10)
        return (torch.softmax(scores, dim=1).unsqueeze(-1) * encoded).sum(1)

    def encode_videos(
        self, clips: Tensor, frames: Tensor, frame_mask: Tensor, noise: Tensor | None = None
    ) -> VideoEncoding:
        """clips (B, M, V), frames (B, L, V), frame_mask (B, L) bool. L is 128 unless frames are trimmed.

        `noise` (B, K, D) is what a diffusion that starts from noise uses in training. Without it, all videos have the
        same fixed noise. Other models ignore it.
        """
        clip_tokens = self.clip_input(clips)
        # Padded rows count as zero rows in a video's mean over positions, whatever values they hold.
        frame_tokens = self.frame_input(self._zero_padding(frames, frame_mask))
        made = self._make_registers(clip_tokens, noise) if self.config.registers else _Registers()
        return VideoEncoding(
            clip_tokens=self.clip_fusion(clip_tokens, made.registers, None),
            frame_tokens=self.frame_fusion(frame_tokens, made.registers, frame_mask, self.trimmed),
            frame_mask=frame_mask if self.trimmed else None,
            registers=made.registers,
            condition=made.condition,
            noise=made.noise,
            mu=made.mu,
            logvar=made.logvar,
        )

    def _make_registers(self, clip_tokens: Tensor, noise: Tensor | None) -> _Registers:
        """clip_tokens (B, M, D), and the noise (B, K, D) of a diffusion that starts from noise."""
        context = self.video_context(clip_tokens, None, None, None)[0]
        if self.config.register_source == "pooling":
            with torch.autocast(context.device.type, enabled=False):
                return _Registers(self.pooling(context))
        condition = self.condition(context)
        with torch.autocast(context.device.type, enabled=False):
            condition = condition.to(context.dtype)
            if self.config.diffusion_start == "variational":
                mu, logvar = self.sampler(context)
                noise = mu.unsqueeze(1)
            else:
                mu = logvar = None
                noise = (self.fixed_noise if noise is None else noise).to(context.dtype).expand_as(condition)
            return _Registers(self.diffusion(noise, condition), condition, noise, mu, logvar)

    @kernels.zero_padding
    def _zero_padding(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Return frames (B, L, V) with zeros where mask (B, L) is false."""
        return frames.masked_fill(~mask.unsqueeze(-1), 0)

    def denoising_errors(self, encoding: VideoEncoding, start: Tensor) -> Tensor:
        """Return the denoiser's squared error, averaged over T, K and D: start = x_0 (B, K, D) -> (B,)."""
        assert encoding.noise is not None and encoding.condition is not None, "a model without diffusion"
        with torch.autocast(start.device.type, enabled=False):
            errors: Tensor = self.diffusion.errors(start.to(encoding.noise.dtype), encoding.noise, encoding.condition)
        return errors

    def compile_chains(self, enabled: bool) -> None:
        """Set whether training on a GPU uses compiled kernels. Compiling them takes about half a minute once."""
        kernels.set_compiled_chains(self, enabled)

    def gradient_parts(self) -> dict[str, int]:
        """Return how many parts each parameter stacks along its leading axis, by name.

        The gradient of each part is clipped by its own norm (docs/model.md, section 4).
        """
        parts = {name: 1 for name, _ in self.named_parameters()}
        for path, module in self.named_modules():
            if isinstance(module, (StackedLinear, StackedLayerNorm)):
                parts |= {f"{path}.{name}": len(parameter) for name, parameter in module.named_parameters()}
        return parts

    def undecayed(self) -> set[str]:
        """Return the names of the parameters without weight decay.

        These are all biases and the LayerNorms of the input layers and position embeddings.
        """
        names = {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1].startswith("bias")}
        inputs = [path for path, module in self.named_modules() if isinstance(module, (InputLayer, TokenInput))]
        return names | {f"{path}.norm.weight" for path in inputs}

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise the weights (docs/model.md, section 4).

        Linear layers and position tables: N(0, 0.02); biases: 0; learned tokens: N(0, 1).
        """
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
        """Start queries, clips and frames from the same projection.

        It is orthogonal, so it preserves the cosines of features as well as D allows.
        """
        first, *others = (
            tokens.layer.project.weight for tokens in (self.query_input, self.clip_input, self.frame_input)
        )
        if any(weight.shape != first.shape for weight in others):
            raise ValueError(
                "model.initialization = aligned needs query and video features of the same size,"
                f" not {first.shape[1]} and {others[0].shape[1]}"
            )
        nn.init.orthogonal_(first)
        for weight in others:
            weight.copy_(first)
