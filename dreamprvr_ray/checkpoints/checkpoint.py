"""Checkpoint directories: `weights.safetensors`, `state.pt`, `experiment.yaml`, `metrics.json`.

They hold tensors and plain values: loading one never executes code. A directory is written under a temporary name and renamed when
it is whole, so that one which exists can be loaded.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.model.authors import read_authors_checkpoint
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.storage.files import copy_files, read_json, replacing

WEIGHTS, STATE, EXPERIMENT, METRICS = "weights.safetensors", "state.pt", "experiment.yaml", "metrics.json"


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode with the experiment that trained it and what was measured then."""

    model: DreamPRVR
    experiment: Experiment
    metrics: dict[str, Any]


def write_checkpoint(
    directory: Path,
    weights: Mapping[str, torch.Tensor],
    experiment: Experiment,
    metrics: dict[str, Any],
    state: dict[str, Any] | None,
) -> None:
    """Writes the files of a checkpoint into `directory`, which exists; `state` is what resuming needs besides the weights.

    Raises OSError where they cannot be written: both libraries would raise types of their own.
    """
    # Stacked branches may be views of one storage: safetensors wants each tensor by itself.
    _write(directory / WEIGHTS, safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}))
    if state is not None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        _write(directory / STATE, buffer.getbuffer())
    _write(directory / EXPERIMENT, experiment.to_yaml().encode())
    _write(directory / METRICS, (json.dumps(metrics, indent=1) + "\n").encode())


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # or a machine that loses power may keep the name of an empty file


def read_state(directory: Path) -> dict[str, Any]:
    """What resuming needs besides the weights. Raises `UserError` where it is missing or damaged."""
    try:
        state: dict[str, Any] = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{directory}: has no {STATE}: it can be evaluated, but training cannot resume from it"
        ) from None
    except pickle.UnpicklingError:  # its text advises to load the file all the same
        raise UserError(
            f"{directory / STATE}: damaged, or holds more than tensors and plain values: not loaded"
        ) from None
    except Exception as error:  # torch.load raises many types for damaged files
        raise UserError(f"{directory / STATE}: damaged: {first_line(error)}") from None
    return state


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, on the CPU. Raises `UserError` where they are missing or damaged."""
    try:
        return safetensors.torch.load_file(directory / WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{directory}: no checkpoint: it has no {WEIGHTS}") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{directory / WEIGHTS}: damaged: {first_line(error)}") from None


def load_model(path: Path) -> TrainedModel:
    """The model of a checkpoint directory, or of a checkpoint file of the authors' release.

    Raises `UserError` where the path is neither, where a file is damaged, or where weights do not fit the configuration.
    """
    if path.is_file():
        theirs = read_authors_checkpoint(path)
        experiment, weights, metrics = theirs.experiment, theirs.weights, {"epoch": theirs.epoch}
    elif path.is_dir():
        weights = read_weights(path)
        experiment = load_experiment(path / EXPERIMENT)
        metrics = read_json(path / METRICS)
    else:
        raise UserError(f"{path}: no such checkpoint")
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced: leave the caller's generator alone
        data = experiment.data
        model = DreamPRVR(experiment.model, data.video_size, data.text_size, data.trim_frames)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{path}: the weights do not fit its {EXPERIMENT}: {' '.join(str(error).split())[:300]}"
        ) from None
    return TrainedModel(model.eval(), experiment, metrics)


def export_checkpoint(source: Path, target: Path) -> dict[str, Any]:
    """Copies what evaluating a checkpoint needs into a new directory, with a script that retrieves with it; returns its metrics.

    Raises `UserError` where `source` is no checkpoint that can be loaded, or `target` exists.
    """
    if target.exists():
        raise UserError(f"{target}: already there; choose another --out")
    if not source.is_dir():
        raise UserError(f"{source}: no such checkpoint")
    metrics = load_model(source).metrics
    with replacing(target) as directory:
        for path in source.iterdir():
            if path.is_file() and path.name != STATE:
                shutil.copy2(path, directory)
        script = resources.files("dreamprvr_ray") / "retrieve.py.txt"
        (directory / "retrieve.py").write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    return metrics


def copy_checkpoint(source: Path, target: Path) -> dict[str, Any]:
    """Copies a checkpoint directory, whole or not at all; returns its metrics."""
    if not source.is_dir():
        raise UserError(f"{source}: no such checkpoint")
    with replacing(target) as directory:
        copy_files(source, directory)
    return read_json(target / METRICS)
