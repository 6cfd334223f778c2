"""Checkpoints as the model's authors release them: their settings, their weights under our names, and the names both ways.

Such a file is a pickle whose optimiser part names classes of their own code. Nothing in it is executed: apart from tensors and ordered
dictionaries, whatever it names becomes an inert object.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dreamprvr_ray.config import CLIPS, FRAMES, QUERY_TOKENS, Experiment, ModelConfig, build_experiment
from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.model.dreamprvr import DreamPRVR

PATIENCE = 10  # where their settings have no `max_es_cnt`

# Our dotted key -> theirs, or theirs and a place in its list.
_SETTINGS: dict[str, str | tuple[str, int]] = {
    "model.registers": "num_registers",
    "model.diffusion_steps": "timesteps",
    "model.hidden_size": "hidden_size",
    "model.heads": "n_heads",
    "model.branches": "attention_num",
    "model.denoiser_layers": "num_diffusion_layers",
    "model.dropout": "drop",
    "model.input_dropout": "input_drop",
    "model.fusion_temperature": "sft_factor",
    "loss.weights.clip_nce": ("loss_factor", 0),
    "loss.weights.frame_nce": ("loss_factor", 1),
    "loss.weights.diversity": ("loss_factor", 2),
    "loss.weights.similarity": ("loss_factor", 3),
    "loss.weights.variational": ("loss_factor", 4),
    "loss.weights.denoising": ("loss_factor", 5),
    "loss.margin": "margin",
    "loss.diversity_margin": ("neg_factor", 0),
    "loss.diversity_scale": ("neg_factor", 1),
    "loss.diversity_focus": ("neg_factor", 2),
    "loss.similarity_temperature": "deterministic_tau",
    "loss.hard_negative_start_epoch": "hard_negative_start_epoch",
    "loss.hard_negative_pool": "hard_pool_size",
    "optimizer.learning_rate": "lr",
    "optimizer.warmup_fraction": "lr_warmup_proportion",
    "optimizer.weight_decay": "wd",
    "data.video_size": "visual_feat_dim",
    "data.text_size": "q_feat_size",
    "training.epochs": "n_epoch",
    "training.patience": "max_es_cnt",
    "training.batch_videos": "batchsize",
    "training.seed": "seed",
}
_OPTIONAL: dict[str, Any] = {"max_es_cnt": PATIENCE, "batchsize": 128, "hard_negative_start_epoch": 20, "seed": 0}
_FIXED = {"max_ctx_l": FRAMES, "map_size": CLIPS, "max_desc_l": QUERY_TOKENS}


@dataclass(frozen=True)
class AuthorsCheckpoint:
    """What a checkpoint of the authors holds, in our terms."""

    experiment: Experiment
    weights: dict[str, Tensor]  # as `DreamPRVR.load_state_dict` takes them, their time table included
    epoch: int | None


def read_authors_checkpoint(path: Path | str) -> AuthorsCheckpoint:
    """Reads one of the authors' checkpoints without executing anything in it.

    Raises `UserError`: no such file, not of this format, settings or tensors that are missing, unknown or of the wrong shape.
    """
    content = _read_inert(Path(path))
    missing = [f"{path}: has no '{key}'" for key in ("config", "state_dict") if not isinstance(content.get(key), dict)]
    if missing:
        raise UserError(*missing)
    experiment = _experiment(content["config"], str(path))
    weights = weights_from_authors(content["state_dict"], experiment, str(path))
    epoch = content.get("epoch")
    return AuthorsCheckpoint(experiment, weights, epoch if isinstance(epoch, int) else None)


def authors_names(config: ModelConfig) -> dict[str, tuple[str, int | None]]:
    """The authors' name of every tensor -> our name and the place in our stack, None where ours is not stacked."""
    return {theirs: (ours, index) for theirs, ours, index in _names(config)}


def weights_from_authors(tensors: Mapping[str, Tensor], experiment: Experiment, where: str) -> dict[str, Tensor]:
    """Tensors by the authors' names as a state dict of ours. Raises `UserError` naming `where` and each tensor that does not fit."""
    names = authors_names(experiment.model)
    with torch.device("meta"):  # shapes alone: neither memory nor a draw of the global generator
        shapes = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size).state_dict()
    mistakes = [f"{where}: unknown tensor '{name}'{did_you_mean(name, names)}" for name in tensors if name not in names]
    parts: dict[str, dict[int | None, Tensor]] = {}
    for theirs, (ours, index) in names.items():
        expected = shapes[ours].shape if index is None else shapes[ours].shape[1:]
        tensor = tensors.get(theirs)
        if tensor is None:
            mistakes.append(f"{where}: tensor '{theirs}' is missing")
        elif not isinstance(tensor, Tensor) or tensor.shape != expected:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else "no tensor"
            mistakes.append(f"{where}: tensor '{theirs}' is {found}, its settings ask for {tuple(expected)}")
        else:
            parts.setdefault(ours, {})[index] = tensor.detach().float()
    if mistakes:
        raise UserError(*mistakes)
    return {
        ours: stack[None].clone() if None in stack else torch.stack([stack[index] for index in range(len(stack))])
        for ours, stack in parts.items()
    }


class _Inert(dict[Any, Any]):
    """What stands for an object of unknown kind: takes whatever a pickle does to it, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...


class _InertUnpickler(pickle.Unpickler):
    """An unpickler that builds tensors, plain containers and `_Inert`, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # Not the function itself: a pickle may set attributes of what it names.
            return lambda *arguments: torch._utils._rebuild_tensor_v2(*arguments)  # type: ignore[no-untyped-call]
        return _Inert


def _read_inert(path: Path) -> dict[str, Any]:
    """The dictionary in a zipped checkpoint of torch. Raises `UserError` where the file is missing or no such thing."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a checkpoint in torch's zip format (files of torch before 1.6 are not read)")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):  # torch would load it as a program
                raise UserError(f"{path}: is a TorchScript program, not a checkpoint")
        reader = SimpleNamespace(Unpickler=_InertUnpickler, __name__="inert")
        content = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file can fail in any way
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dictionary")
    return content


def _experiment(settings: Mapping[str, Any], where: str) -> Experiment:
    """Our experiment from their settings. Raises `UserError` naming `where` and each setting that is missing or not allowed."""
    mistakes = [
        f"{where}: {key} = {settings[key]!r}: only {value} is supported"
        for key, value in _FIXED.items()
        if settings.get(key, value) != value
    ]
    values: dict[str, Any] = {}
    for ours, place in [*_SETTINGS.items(), ("clip", "clip_scale_w"), ("frame", "frame_scale_w")]:
        key, index = place if isinstance(place, tuple) else (place, None)
        value = settings.get(key, _OPTIONAL.get(key))
        if index is not None:
            value = value[index] if isinstance(value, (list, tuple)) and len(value) > index else None
        if value is None:
            mistakes.append(f"{where}: setting '{key}'{'' if index is None else f'[{index}]'} is missing")
        values[ours] = value
    if mistakes:
        raise UserError(*mistakes)
    clip, frame = values.pop("clip"), values.pop("frame")
    try:
        values["evaluation.clip_weight"] = clip / (clip + frame)  # ranks depend on their ratio alone
    except (TypeError, ZeroDivisionError):
        raise UserError(
            f"{where}: clip_scale_w = {clip!r} and frame_scale_w = {frame!r}: must be numbers, not both 0"
        ) from None
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return build_experiment(nested, where)


def _names(config: ModelConfig) -> Iterator[tuple[str, str, int | None]]:
    """(their name, our name, place in our stack) of every tensor."""
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
        yield "video_qformer.query_tokens", "condition.tokens", None
        yield from _cross_attention("video_qformer.cross_attention", "condition.attention")
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
