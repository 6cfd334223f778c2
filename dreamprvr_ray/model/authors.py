"""Reads the checkpoints that the model's authors released.

Such a file is a pickle whose optimizer state names classes of the authors' code. Reading it executes nothing: apart
from tensors and ordered dictionaries, every object in it becomes an inert placeholder.

    checkpoint = read_authors_checkpoint("tvr.ckpt")
    model.load_state_dict(checkpoint.weights)
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dreamprvr_ray.config import Experiment, build_experiment
from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.errors import UserError, did_you_mean, first_line
from dreamprvr_ray.model.authors_names import authors_names
from dreamprvr_ray.model.dreamprvr import DreamPRVR

PATIENCE = 10  # for settings without `max_es_cnt`

# Our dotted key -> their key, or their key and an index into its list.
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
    """A checkpoint of the authors in this package's terms."""

    experiment: Experiment
    weights: dict[str, Tensor]  # for `DreamPRVR.load_state_dict`, with the authors' time table
    epoch: int | None


def read_authors_checkpoint(path: Path | str) -> AuthorsCheckpoint:
    """Read one of the authors' checkpoints without executing anything in it.

    Raises `UserError` if the file does not exist or has another format, and for settings and tensors that are missing,
    unknown or out of range, each by name.
    """
    content = _read_inert(Path(path))
    mistakes = [
        f"{path}: '{key}' is missing or not a dictionary"
        for key in ("config", "state_dict")
        if not isinstance(content.get(key), dict)
    ]
    if mistakes:
        raise UserError(*mistakes)
    experiment = _experiment(content["config"], str(path))
    weights = _weights(content["state_dict"], experiment, str(path))
    epoch = content.get("epoch")
    return AuthorsCheckpoint(experiment, weights, epoch if isinstance(epoch, int) else None)


def _weights(tensors: Mapping[str, Any], experiment: Experiment, source: str) -> dict[str, Tensor]:
    """Return the authors' tensors as a state dict. Raises `UserError` for each tensor that does not fit."""
    names = authors_names(experiment.model)
    with torch.device("meta"):  # only shapes: needs no memory and does not use the global generator
        shapes = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size).state_dict()
    mistakes = [
        f"{source}: unknown tensor '{name}'{did_you_mean(name, names)}" for name in tensors if name not in names
    ]
    parts: dict[str, dict[int | None, Tensor]] = {}
    for theirs, (ours, index) in names.items():
        expected = shapes[ours].shape if index is None else shapes[ours].shape[1:]
        if theirs not in tensors:
            mistakes.append(f"{source}: tensor '{theirs}' is missing")
        elif not isinstance(tensor := tensors[theirs], Tensor):
            mistakes.append(f"{source}: '{theirs}' must be a tensor, not a {type(tensor).__name__}")
        elif tensor.shape != expected:
            shapes_differ = f"has shape {tuple(tensor.shape)}; its settings require {tuple(expected)}"
            mistakes.append(f"{source}: tensor '{theirs}' {shapes_differ}")
        else:
            parts.setdefault(ours, {})[index] = tensor.detach().float()
    if mistakes:
        raise UserError(*mistakes)
    return {
        ours: stack[None].clone() if None in stack else torch.stack([stack[index] for index in range(len(stack))])
        for ours, stack in parts.items()
    }


class _Inert(dict[Any, Any]):
    """A placeholder for an object of any other class. It accepts all that a pickle does to it and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...


class _InertUnpickler(pickle.Unpickler):
    """Builds tensors, plain containers and `_Inert` placeholders, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # Not the function itself, because a pickle may set attributes of the objects that it names.
            return lambda *arguments: torch._utils._rebuild_tensor_v2(*arguments)  # type: ignore[no-untyped-call]
        return _Inert


def _read_inert(path: Path) -> dict[str, Any]:
    """Return the dictionary in a checkpoint of torch's zip format. Raises `UserError` if there is none."""
    if not path.is_file():
        raise UserError(f"{path}: does not exist")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a checkpoint in torch's zip format (torch < 1.6 is not supported)")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):  # torch.load would run it
                raise UserError(f"{path}: a TorchScript program, not a checkpoint")
            if (damaged := archive.testzip()) is not None:  # torch.load does not compare checksums
                raise UserError(f"{path}: damaged: the checksum of {damaged} in it differs")
        reader = SimpleNamespace(Unpickler=_InertUnpickler, __name__="inert")
        content = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except UserError:
        raise
    except Exception as error:  # a damaged or malicious file can fail in any way
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {first_line(error)[:200]})"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a checkpoint must contain a dictionary, not a {type(content).__name__}")
    return content


def _experiment(settings: Mapping[str, Any], source: str) -> Experiment:
    """Return the authors' settings as an experiment. Raises `UserError` for each setting that is wrong."""
    mistakes = [
        f"{source}: setting '{key}' must be {value}, not {settings[key]!r}"
        for key, value in _FIXED.items()
        if settings.get(key, value) != value
    ]
    values: dict[str, Any] = {}
    for ours, theirs in [*_SETTINGS.items(), ("clip", "clip_scale_w"), ("frame", "frame_scale_w")]:
        key, index = theirs if isinstance(theirs, tuple) else (theirs, None)
        value = settings.get(key, _OPTIONAL.get(key))
        if index is not None:
            value = value[index] if isinstance(value, (list, tuple)) and len(value) > index else None
        if value is None:
            mistakes.append(f"{source}: setting '{key}'{'' if index is None else f'[{index}]'} is missing")
        values[ours] = value
    if mistakes:
        raise UserError(*mistakes)
    clip, frame = values.pop("clip"), values.pop("frame")
    try:
        values["evaluation.clip_weight"] = clip / (clip + frame)  # ranks depend only on their ratio
    except (TypeError, ZeroDivisionError):
        raise UserError(
            f"{source}: clip_scale_w and frame_scale_w must be numbers whose sum is not 0, not {clip!r} and {frame!r}"
        ) from None
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return build_experiment(nested, source)
