"""The names of tensors in the authors' checkpoints, and where this package stores the same tensors.

The authors' checkpoints have separate tensors for every branch. Here, branches are stacked along a leading axis
(`attention.StackedLinear`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dreamprvr_ray.config_sections import ModelConfig


class TensorPlace(NamedTuple):
    """One of the authors' tensors in this package's state dict."""

    name: str
    part: int | None  # its index along the leading axis; None: the whole tensor


def authors_names(config: ModelConfig) -> dict[str, TensorPlace]:
    """Return the place of every tensor of a model, by the authors' names."""
    return {theirs: TensorPlace(ours, index) for theirs, ours, index in _names(config)}


def _names(config: ModelConfig) -> Iterator[tuple[str, str, int | None]]:
    """Yield (their name, our name, index in our stack) of every tensor."""
    for kind in ("query", "clip", "frame"):
        yield from _pair(f"{kind}_input_proj.LayerNorm", f"{kind}_input.layer.norm")
        yield from _pair(f"{kind}_input_proj.net.1", f"{kind}_input.layer.project")
        yield f"{kind}_pos_embed.position_embeddings.weight", f"{kind}_input.positions", None
        yield from _pair(f"{kind}_pos_embed.LayerNorm", f"{kind}_input.norm")
    yield from _self_attention(["query_encoder"], "query_attention")
    yield "modular_vector_mapping.weight", "query_pooling.weight", None
    for kind in ("clip", "frame"):
        theirs, ours = f"{kind}_encoder", f"{kind}_fusion"
        yield from _self_attention(
            [f"{theirs}.e_attns.{branch}" for branch in range(config.branches)], f"{ours}.branches"
        )
        yield from _cross_attention(f"{theirs}.ca", f"{ours}.summary")
        yield from _pair(f"{theirs}.layer1", f"{ours}.weight_hidden")
        yield from _pair(f"{theirs}.layer2", f"{ours}.weight_output")
        if config.registers:
            yield from _pair(f"{theirs}.noise_input_layer.LayerNorm", f"{ours}.register_input.norm")
            yield from _pair(f"{theirs}.noise_input_layer.net.1", f"{ours}.register_input.project")
    if config.registers:
        yield from _self_attention(["mean_clip_encoder"], "video_context")
    if config.registers and config.register_source == "diffusion":
        yield "video_qformer.query_tokens", "condition.tokens", None
        yield from _cross_attention("video_qformer.cross_attention", "condition.attention")
        if config.diffusion_start == "variational":
            yield from _sampler("video_probabilistic_variational_sampler", "sampler")
        yield from _denoiser("diffusion_mlp", "diffusion.denoiser", config.denoiser_layers)


def _pair(theirs: str, ours: str, index: int | None = None) -> Iterator[tuple[str, str, int | None]]:
    for name in ("weight", "bias"):
        yield f"{theirs}.{name}", f"{ours}.{name}", index


def _self_attention(theirs: list[str], ours: str) -> Iterator[tuple[str, str, int | None]]:
    for branch, prefix in enumerate(theirs):
        yield from _pair(f"{prefix}.self.query", f"{ours}.query", branch)
        yield from _pair(f"{prefix}.self.key", f"{ours}.key_value", branch)
        yield from _pair(f"{prefix}.self.value", f"{ours}.key_value", len(theirs) + branch)
        yield from _feed_forward(prefix, f"{ours}.feed_forward", branch)


def _cross_attention(theirs: str, ours: str) -> Iterator[tuple[str, str, int | None]]:
    for name in ("query", "key", "value"):
        yield from _pair(f"{theirs}.self.{name}", f"{ours}.{name}")
    yield from _feed_forward(theirs, f"{ours}.feed_forward", 0)


def _feed_forward(theirs: str, ours: str, index: int) -> Iterator[tuple[str, str, int | None]]:
    parts = {"norm1": "attention_norm", "output.layer1": "widen", "output.layer2": "narrow", "norm2": "output_norm"}
    for their_part, our_part in parts.items():
        yield from _pair(f"{theirs}.{their_part}", f"{ours}.{our_part}", index)


def _sampler(theirs: str, ours: str) -> Iterator[tuple[str, str, int | None]]:
    for matrix in ("ih", "hh"):
        for direction in ("", "_reverse"):
            yield from _pair_of_gru(f"{theirs}.gpo.gru", f"{ours}.pooling.gru", f"{matrix}_l0{direction}")
    yield f"{theirs}.gpo.linear.weight", f"{ours}.pooling.score.weight", None
    for their_net, our_pooling in (("pie_net_video", "mu_pooling"), ("uncertain_net_video", "logvar_pooling")):
        yield f"{theirs}.{their_net}.attention.w_1.weight", f"{ours}.{our_pooling}.hidden.weight", None
        yield f"{theirs}.{their_net}.attention.w_2.weight", f"{ours}.{our_pooling}.score.weight", None
    yield from _pair(f"{theirs}.pie_net_video.fc", f"{ours}.mu_gate")
    yield from _pair(f"{theirs}.pie_net_video.layer_norm", f"{ours}.mu_norm")
    yield from _pair(f"{theirs}.uncertain_net_video.fc", f"{ours}.logvar_attended")
    yield from _pair(f"{theirs}.uncertain_net_video.fc2", f"{ours}.logvar_pooled")


def _pair_of_gru(theirs: str, ours: str, suffix: str) -> Iterator[tuple[str, str, int | None]]:
    for name in ("weight", "bias"):
        yield f"{theirs}.{name}_{suffix}", f"{ours}.{name}_{suffix}", None


def _denoiser(theirs: str, ours: str, layers: int) -> Iterator[tuple[str, str, int | None]]:
    yield f"{theirs}.time_embedding.timembedding.0.weight", f"{ours}.time_codes", None
    yield from _pair(f"{theirs}.time_embedding.timembedding.1", f"{ours}.time_input")
    yield from _pair(f"{theirs}.time_embedding.timembedding.3", f"{ours}.time_output")
    yield from _pair(f"{theirs}.cond_embedding.0", f"{ours}.condition_norm")
    yield from _pair(f"{theirs}.cond_embedding.2", f"{ours}.condition_output")
    yield from _pair(f"{theirs}.short_cut", f"{ours}.output")
    parts = {
        "blcok_in.0": "input_norm",
        "blcok_in.2": "input",
        "temb_proj.1": "time",
        "cond_proj.1": "condition",
        "blcok_out.0": "output_norm",
        "blcok_out.3": "output",
        "short_cut": "shortcut",
    }
    for layer in range(layers):
        for their_part, our_part in parts.items():
            yield from _pair(f"{theirs}.layers.{layer}.{their_part}", f"{ours}.layers.{layer}.{our_part}")
